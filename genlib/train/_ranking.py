"""Which checkpoints of a run are the best."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from genlib.train._format import read_meta


def score(meta: Mapping[str, Any], best: Sequence[str | None]) -> float:
    """Return the metric that `best` = (name, mode) names, less being better, or NaN."""
    name, mode = best
    value = meta.get("metrics", {}).get(name, math.nan)
    return value if mode == "min" else -value


def read_score(path: epath.Path, best: Sequence[str | None] | None = None) -> float:
    """Return the score of a checkpoint, NaN if it is damaged or has none.

    Without `best` it is by what the `Checkpointer` was told.
    """
    try:
        meta = read_meta(path)
        return score(meta, best or meta.get("best", (None, "min")))
    except Exception:  # damage shows as almost any exception
        return math.nan


def rank(scores: Mapping[int, float]) -> list[int]:
    """Return the steps that have a score, the best first, the newest of equals."""
    known = [step for step, value in scores.items() if not math.isnan(value)]
    return sorted(known, key=lambda step: (scores[step], -step))
