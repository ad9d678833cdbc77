"""Training: one pure step, the devices it runs on, checkpoints, and the loop.

| name                              | what it is                                     |
|-----------------------------------|------------------------------------------------|
| `State`, `init(key, params, tx)`  | step, params, float32 ema, opt_state, key      |
| `power_ema(std)`, `warmup_ema()`  | decays that follow the step (`Decay`)          |
| `posthoc_ema(snapshots, std)`,    | an average of any width, after the run; the    |
| `posthoc_coefficients`,           | weights of its snapshots; and reading them     |
| `read_snapshots`, `Snapshot`      | from a run's checkpoints                       |
| `make_step(loss_fn, tx)`          | pure `(state, batch) -> (state, metrics)`      |
| `make_mesh`, `replicate`,         | data parallelism: a mesh, a state everywhere,  |
| `shard_batch`, `jit_step`         | a batch split over them, the compiled step     |
| `Checkpointer`, `Restored`        | save and resume a run, bit for bit             |
| `restore_params`, `read_metadata` | what sampling needs of a checkpoint            |
| `Metrics`                         | `metrics.jsonl`, and TensorBoard               |
| `fit(step, state, batches)`       | the loop: logs, evaluates, saves, resumes      |
| `BatchIterator`, `Writer`, `Step` | what `fit` asks of its arguments               |

A model gives a `LossFn`: `loss_fn(params, batch, key) -> (loss_sum, weight, aux)`.
"""

from genlib.train._checkpoint import Checkpointer, Restored
from genlib.train._ema import (
    Decay,
    Snapshot,
    posthoc_coefficients,
    posthoc_ema,
    power_ema,
    warmup_ema,
)
from genlib.train._loop import BatchIterator, Writer, fit
from genlib.train._read import read_metadata, read_snapshots, restore_params
from genlib.train._sharding import jit_step, make_mesh, replicate, shard_batch
from genlib.train._state import State, init
from genlib.train._step import LossFn, Step, make_step
from genlib.train._writer import Metrics

__all__ = [
    "BatchIterator",
    "Checkpointer",
    "Decay",
    "LossFn",
    "Metrics",
    "Restored",
    "Snapshot",
    "State",
    "Step",
    "Writer",
    "fit",
    "init",
    "jit_step",
    "make_mesh",
    "make_step",
    "posthoc_coefficients",
    "posthoc_ema",
    "power_ema",
    "read_metadata",
    "read_snapshots",
    "replicate",
    "restore_params",
    "shard_batch",
    "warmup_ema",
]
