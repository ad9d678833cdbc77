"""The one attention: its formula, its options, and which code computes it."""

import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

from genlib.attention import _fused, _splash
from genlib.attention._bias import Bias
from genlib.attention._call import Call, make_call
from genlib.attention._mask import Mask
from genlib.attention._naive import naive
from genlib.attention._tiled import tiled
from genlib.types import Array, ArrayLike, Scalar

Impl = Literal["auto", "naive", "tiled", "fused", "splash"]
_SHORT = 512 * 512  # scores of a head: up to here all at once is as fast as tiles


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Mask | ArrayLike | None = None,
    bias: Bias | ArrayLike | None = None,
    scale: Scalar | None = None,
    softcap: Scalar | None = None,
    sink: ArrayLike | None = None,
    q_positions: ArrayLike | None = None,
    kv_positions: ArrayLike | None = None,
    impl: Impl = "auto",
    block: tuple[int, int] | None = None,
    return_lse: bool = False,
) -> Any:
    """Return for each query the mean of the values, weighted by softmax of scores.

        l_ij  = c tanh(scale q_i k_j / c) + bias_ij        (no tanh without softcap)
        lse_i = log(exp(sink) + sum_j exp(l_ij))           over the keys that i sees
        o_i   = sum_j exp(l_ij - lse_i) v_j

    Scores, softmax and sums are float32 (float64 for float64), the weights of values
    in the dtype of v. A query that sees nothing gets exactly 0, a log-sum-exp of -inf
    and derivatives of 0. NaN or infinity in a masked key, value or query reaches no
    other row, forward or backward; what sees it is NaN.

    | impl     | what it is                          | memory  | derivatives    |
    |----------|-------------------------------------|---------|----------------|
    | "naive"  | the formula, all scores at once     | B N T S | of every order |
    | "tiled"  | blocks, none where nothing is seen  | linear  | reverse mode   |
    | "fused"  | cuDNN's kernels, through `jax.nn`   | linear  | reverse, once  |
    | "splash" | Pallas kernels for TPUs, of jax     | linear  | reverse, once  |

    "auto" takes, on a GPU, "fused" if cuDNN computes exactly this call (half
    precision, masks of causal, windows, prefixes and tables, no log-sum-exp, softcap
    or sink); on a TPU "splash" likewise; otherwise "naive" up to 512 x 512 scores and
    "tiled" above. It asks jax for its default device while tracing. A library is never
    given what it would compute as something else: asked for by name, it says in a
    ValueError why it cannot. Two differences remain: "splash" multiplies q by `scale`
    in its own dtype, and in "fused" keys behind a bias of -inf count as masked.

    Args:
      q: `[B, T, N, H]`.
      k: `[B, S, K, H]` in the dtype of q, K dividing N: query head n looks at key
        head n // (N // K).
      v: `[B, S, K, V]` in the dtype of q.
      mask: what is seen: a `Mask`, or bools `[B, heads, T, S]` with axes of 1 where
        they do not differ. Everything by default.
      bias: added to scores: a `Bias`, or floats of such a shape.
      scale: on products of q and k, by default H^-1/2.
      softcap: c, which bounds scores before bias and mask.
      sink: logits `[N]` of one more key, whose value is 0.
      q_positions: integers `[T]` or `[B, T]`, for masks and biases. By default queries
        are the last T of the S positions.
      kv_positions: integers `[S]` or `[B, S]`; given with `q_positions` or not at all.
      impl: what computes it.
      block: rows of queries and of keys in a block, for "tiled" and "splash" alone.
      return_lse: return the log-sum-exp too.

    Returns:
      `[B, T, N, V]` in the dtype of q; with `return_lse` also `[B, T, N]` in at least
      float32, differentiable.

    Raises:
      ValueError: if an argument does not fit, or `impl` cannot compute this.

    Source: arXiv:1706.03762, eq. 1. Blocks: arXiv:2205.14135 and arXiv:2307.08691.
    Shared keys: arXiv:2305.13245. Softcap: arXiv:2408.00118. Sinks: arXiv:2309.17453.

    >>> import jax
    >>> from genlib.attention import causal
    >>> x = jax.random.normal(jax.random.key(0), (1, 6, 2, 8))
    >>> whole = attention(x, x, x, mask=causal())
    >>> last = attention(x[:, 4:], x, x, mask=causal())  # the last two queries
    >>> bool(abs(last - whole[:, 4:]).max() < 1e-6)
    True
    """
    call = make_call(
        q, k, v, mask, bias, scale, softcap, sink, q_positions, kv_positions
    )
    out, lse = _implementation(call, impl, block, return_lse)(call)
    return (out, lse) if return_lse else out


def _implementation(
    call: Call, impl: str, block: tuple[int, int] | None, return_lse: bool
) -> Callable[[Call], tuple[Array, Array | None]]:
    """Return what computes a call."""
    if impl not in get_args(Impl):
        raise ValueError(f"impl must be one of {get_args(Impl)}, got {impl!r}")
    if block is not None:
        _check_block(block, impl)
    libraries = {"fused": _fused, "splash": _splash}
    if impl in libraries and (reason := libraries[impl].refusal(call, return_lse)):
        raise ValueError(f'impl="{impl}" cannot compute this: {reason}')
    if impl == "auto":
        impl = _choice(call, return_lse)
    return {
        "naive": naive,
        "tiled": functools.partial(tiled, block=block),
        "fused": _fused.fused,
        "splash": functools.partial(_splash.splash, block=block),
    }[impl]


def _choice(call: Call, return_lse: bool) -> str:
    platform = _fused.device().platform
    if platform == "gpu" and not _fused.refusal(call, return_lse):
        return "fused"
    if platform == "tpu" and not _splash.refusal(call, return_lse):
        return "splash"
    return "naive" if call.q.shape[1] * call.k.shape[1] <= _SHORT else "tiled"


def _check_block(block: Any, impl: str) -> None:
    if impl not in ("tiled", "splash"):
        raise ValueError(f'block is for impl="tiled" or "splash", got impl={impl!r}')
    sizes = tuple(block) if isinstance(block, (tuple, list)) else ()
    if len(sizes) != 2 or not all(isinstance(n, int) and n > 0 for n in sizes):
        raise ValueError(f"block must be two positive integers, got {block!r}")
