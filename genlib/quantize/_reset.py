"""Codes that nothing chooses any more, and where they start again."""

import jax.numpy as jnp

from genlib.quantize._codebook import State, Statistics
from genlib.types import Array, Scalar, concrete


def reset_dead(state: State, statistics: Statistics, *, share: Scalar = 0.1) -> State:
    """Let codes that are hardly chosen start again from vectors of the batch.

        where n_k < share mean(n):  n_k <- mean(n),  sum_k <- mean(n) candidate_k.

    With the count of an average code it is not dead again at once: unless chosen, after
    log(share) / log(decay) updates, 230 with the defaults. All shapes are fixed, and
    every device does the same. A code without exactly one candidate waits for one.

    Args:
      state: {"n": [K], "sum": [K, D]}, after the update by the same statistics.
      statistics: of a batch, with candidates: see the `key` of `codebook_statistics`.
      share: of the average count, below which a code is dead, above 0 and below 1.
        Since `ema_update` stops at n = 1000 eps, batches that bring a code fewer than
        1000 eps / share vectors on average need a smaller eps.

    Returns:
      The state, with (n, sum) of dead codes replaced.

    Raises:
      ValueError: if `share` is known not to be between 0 and 1.

    >>> state = {"n": jnp.array([4.0, 0.1]), "sum": jnp.array([[4.0], [0.9]])}
    >>> one, two = jnp.array([0.0, 1.0]), jnp.array([[0.0], [7.0]])
    >>> statistics = Statistics(n=one, sum=two, candidates=two, drawn=one)
    >>> reset_dead(state, statistics)["n"].round(2).tolist()
    [4.0, 2.049999952316284]
    """
    check_share("share", share)
    dead, mean = dead_codes(state["n"], statistics, share)
    restarted = mean * statistics.candidates.astype(state["sum"].dtype)
    return {
        "n": jnp.where(dead, mean, state["n"]),
        "sum": jnp.where(dead[:, None], restarted, state["sum"]),
    }


def dead_codes(n: Array, statistics: Statistics, share: Scalar) -> tuple[Array, Array]:
    """Return which codes [K] are to start again, and the average count [].

    >>> drawn = Statistics(*4 * (jnp.ones(2),))
    >>> dead_codes(jnp.array([4.0, 0.1]), drawn, 0.1)[0].tolist()
    [False, True]
    """
    mean = n.mean()
    return (n < share * mean) & (statistics.drawn == 1), mean


def check_share(name: str, share: Scalar) -> None:
    """Raise a ValueError unless a concrete share is above 0 and below 1.

    >>> check_share("reset", 2.0)
    Traceback (most recent call last):
    ValueError: reset must be above 0 and below 1, a share of the average; it is 2.0
    """
    values = concrete(share)
    if values is not None and not ((values > 0) & (values < 1)).all():
        raise ValueError(
            f"{name} must be above 0 and below 1, a share of the average; it is {share}"
        )
