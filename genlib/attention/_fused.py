"""Attention by cuDNN's kernels, through jax.nn, for the calls that they do exactly."""

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genlib.attention._bias import _Table
from genlib.attention._call import Call
from genlib.attention._guard import conditions, guarded
from genlib.attention._mask import Mask
from genlib.attention._mask_tables import _Dense, dense
from genlib.attention._masks import _Causal, _Prefix, _Window
from genlib.types import Array, concrete


def refusal(call: Call, return_lse: bool) -> str | None:
    """Return why cuDNN cannot compute exactly this call, or None if it can."""
    features, rows = call.q.shape[-1], (call.q.shape[1], call.k.shape[1])
    # Tables are rounded to the dtype of q, and -2**14 for masked is not -inf.
    bias: Any = call.bias
    masks = conditions(call)
    tabular = isinstance(bias, _Table) or bool(_of(_Dense, masks))
    reasons = {
        "it needs an NVIDIA GPU of compute capability 8.0": not _capable(),
        "it computes in bfloat16 and float16": call.q.dtype.itemsize != 2,
        "queries, keys and values must have equal features, a multiple of 8 up to "
        f"128; they are {features} and {call.v.shape[-1]}": (
            call.v.shape[-1] != features or features > 128 or features % 8 != 0
        ),
        "there must be queries and keys": 0 in (*rows, call.q.shape[0]),
        "its log-sum-exp is rounded and has no derivative": return_lse,
        "it has no softcap": call.softcap is not None,
        "it has no sink": call.sink is not None,
        "scale must be known before tracing": concrete(call.scale) is None,
        "a bias must be a table in bfloat16": bias is not None
        and not (isinstance(bias, _Table) and bias.table.dtype == jnp.bfloat16),
        "tables need bfloat16 and even lengths": tabular
        and (call.q.dtype != jnp.bfloat16 or rows[0] % 2 != 0 or rows[1] % 2 != 0),
    }
    found = next((reason for reason, applies in reasons.items() if applies), None)
    return found or _mask_refusal(call, masks, tabular)


def _mask_refusal(call: Call, masks: list[Mask], tabular: bool) -> str | None:
    kinds = (_Causal, _Window, _Prefix, _Dense)
    others = [mask for mask in masks if not isinstance(mask, kinds)]
    causal, windows, prefixes = (_of(kind, masks) for kind in kinds[:3])
    reasons = {
        "its masks are causal, window, prefix and dense, combined by &": others,
        "positions must be those of a sequence": not call.counted
        and (causal or windows or prefixes),
        "causal needs as many queries as keys": causal
        and call.q.shape[1] != call.k.shape[1],
        "window needs causal": windows and not causal,
        "the size of a window must be known before tracing": any(
            concrete(m.size) is None for m in windows
        ),
        "of a window, prefixes and tables it takes one": (
            bool(windows) + bool(prefixes) + tabular > 1
        ),
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


def fused(call: Call) -> tuple[Array, None]:
    """Return the output `[B, T, N, V]`; memory is linear unless there is a table."""
    arguments: dict[str, Any] = {"scale": float(np.asarray(concrete(call.scale)))}
    if call.bias is not None:
        # A row of -inf has nothing to see, which only a mask can say to a kernel.
        bias: Any = call.bias
        hidden = jnp.isneginf(bias.table)
        visible = dense(~hidden)
        call = call._replace(mask=visible if call.mask is None else call.mask & visible)
        arguments["bias"] = _whole(jnp.where(hidden, 0.0, bias.table), call)
    masks = conditions(call)
    if _of(_Causal, masks):
        arguments["is_causal"] = True
    if windows := _of(_Window, masks):
        # Here a window of w is itself and w - 1 more; there they are counted without.
        size = min(int(np.asarray(concrete(mask.size))) for mask in windows)
        arguments["local_window_size"] = (size - 1, 0)
    if prefixes := _of(_Prefix, masks):
        batch, length = call.k.shape[:2]
        lengths = [jnp.asarray(mask.length, jnp.int32) for mask in prefixes]
        lengths = [jnp.broadcast_to(x, (batch,)) for x in lengths]
        # One key at least: a kernel's row of none may be NaN, in derivatives too.
        lengths = jnp.clip(jnp.stack(lengths).min(0), 1, length)
        arguments["key_value_seq_lengths"] = lengths
    if tables := _of(_Dense, masks):
        wholes = (_whole(mask.table, call) for mask in tables)
        arguments["mask"] = functools.reduce(operator.and_, wholes)

    def kernel(q: Array, k: Array, v: Array) -> Array:
        return jax.nn.dot_product_attention(
            q, k, v, implementation="cudnn", **arguments
        )

    return guarded(call, kernel), None


def _of(kind: type, masks: list[Mask]) -> list[Any]:
    return [mask for mask in masks if isinstance(mask, kind)]


def _whole(table: Any, call: Call) -> Array:
    """Return a table as [B or 1, N or 1, T, S]."""
    table = jnp.asarray(table)
    heads = call.q.shape[2]
    if table.shape[1] not in (1, heads):
        table = jnp.repeat(table, heads // table.shape[1], axis=1)
    shape = (*table.shape[:2], call.q.shape[1], call.k.shape[1])
    return jnp.broadcast_to(table, shape)


def device() -> Any:
    """Return the device on which jax will compute."""
    default = getattr(jax.config, "jax_default_device", None)
    if default is None or isinstance(default, str):
        return jax.local_devices(backend=default)[0]
    return default


def _capable() -> bool:
    capability = getattr(device(), "compute_capability", "")
    return capability.replace(".", "").isdigit() and float(capability) >= 8
