"""Training: one pure step, the devices it runs on, checkpoints, and the loop.

| name                              | what it is                                     |
|-----------------------------------|------------------------------------------------|
| `State`, `init(key, params, tx)`  | step, params, float32 ema, opt_state, key      |
| `make_step(loss_fn, tx)`          | pure `(state, batch) -> (state, metrics)`      |
| `LossScale`, `ScaleState`         | dynamic loss scaling, for float16              |
| `power_ema(std)`, `warmup_ema()`  | decays that follow the step (`Decay`)          |
| `posthoc_ema(snapshots, std)`,    | an average of any width, after the run; the    |
| `posthoc_coefficients`,           | weights of its snapshots; and reading them     |
| `read_snapshots`, `Snapshot`      | from a run's checkpoints                       |
|                                   | **devices and processes**                      |
| `make_mesh`                       | axes "data", "fsdp", "tensor", "sequence"      |
| `param_shardings`,                | ordered rules on paths (`Rules`), FSDP where   |
| `state_shardings`                 | none matches; optimizer and ema follow         |
| `init_sharded`, `replicate`,      | a state made in pieces, or copied everywhere;  |
| `shard_batch`                     | a batch split over devices and processes       |
| `jit_step`, `shard_map_step`,     | the same step compiled for many devices        |
| `pmap_step`                       |                                                |
| `initialize`, `is_main`,          | several processes: set up, the one that        |
| `barrier`, `check_same`,          | writes, waiting, agreeing; and what each       |
| `process_rows`, `to_host`         | holds of a batch, and of arrays                |
|                                   | **data**                                       |
| `pipeline`, `eval_batches`,       | batches of any source by Grain's threads, the  |
| `array_source`, `Source`          | same for every number of hosts                 |
| `Transform`, `scale_pixels`,      | what is done to each example                   |
| `random_flip`, `random_crop`      |                                                |
| `token_windows`, `pack_documents` | sequences of one length out of text            |
|                                   | **the run**                                    |
| `fit(step, state, batches)`       | the loop: logs, evaluates, saves, resumes      |
| `BatchIterator`, `Writer`, `Step` | what `fit` asks of its arguments               |
| `Preempted`, `Profile`            | how it stops on SIGTERM; when it is traced     |
| `Metrics`                         | `metrics.jsonl`, and TensorBoard               |
| `Checkpointer`, `Restored`        | save and resume a run, bit for bit             |
| `save`, `restore`                 | one state, whole or in part, on any mesh       |
| `restore_params`, `read_metadata` | what sampling needs of a checkpoint            |
| `export_safetensors`,             | parameters under dotted names, for others      |
| `import_safetensors`              |                                                |
|                                   | **accounting**                                 |
| `flops(fn, *args)`                | exact FLOPs of matrix products, by the jaxpr   |
| `DEVICE_PEAKS`, `device_peak`,    | what a device can do, and the share of it that |
| `Peak`, `mfu`                     | is used                                        |
| `param_table`, `memory_table`,    | parameters and bytes of each device; those of  |
| `memory`, `Memory`                | a compiled program                             |

A model gives a `LossFn`: `loss_fn(params, batch, key) -> (loss_sum, weight, aux)`.
"""

from genlib.train._accounting import Memory, memory, memory_table, param_table
from genlib.train._checkpoint import Checkpointer, Restored, save
from genlib.train._distributed import (
    barrier,
    check_same,
    initialize,
    is_main,
    process_rows,
    to_host,
)
from genlib.train._ema import (
    Decay,
    Snapshot,
    posthoc_coefficients,
    posthoc_ema,
    power_ema,
    warmup_ema,
)
from genlib.train._flops import flops
from genlib.train._gradient import LossFn
from genlib.train._images import random_crop, random_flip, scale_pixels
from genlib.train._log import Profile
from genlib.train._loop import BatchIterator, Writer, fit
from genlib.train._mesh import init_sharded, make_mesh, replicate, shard_batch
from genlib.train._parallel import jit_step, pmap_step, shard_map_step
from genlib.train._peaks import DEVICE_PEAKS, Peak, device_peak, mfu
from genlib.train._pipeline import (
    Source,
    Transform,
    array_source,
    eval_batches,
    pipeline,
)
from genlib.train._preemption import Preempted
from genlib.train._read import read_metadata, read_snapshots, restore, restore_params
from genlib.train._rules import Rules, param_shardings, state_shardings
from genlib.train._safetensors import export_safetensors, import_safetensors
from genlib.train._scale import LossScale, ScaleState
from genlib.train._state import State, init
from genlib.train._step import Step, make_step
from genlib.train._tokens import pack_documents, token_windows
from genlib.train._writer import Metrics

__all__ = [
    "DEVICE_PEAKS",
    "BatchIterator",
    "Checkpointer",
    "Decay",
    "LossFn",
    "LossScale",
    "Memory",
    "Metrics",
    "Peak",
    "Preempted",
    "Profile",
    "Restored",
    "Rules",
    "ScaleState",
    "Snapshot",
    "Source",
    "State",
    "Step",
    "Transform",
    "Writer",
    "array_source",
    "barrier",
    "check_same",
    "device_peak",
    "eval_batches",
    "export_safetensors",
    "fit",
    "flops",
    "import_safetensors",
    "init",
    "init_sharded",
    "initialize",
    "is_main",
    "jit_step",
    "make_mesh",
    "make_step",
    "memory",
    "memory_table",
    "mfu",
    "pack_documents",
    "param_shardings",
    "param_table",
    "pipeline",
    "pmap_step",
    "posthoc_coefficients",
    "posthoc_ema",
    "power_ema",
    "process_rows",
    "random_crop",
    "random_flip",
    "read_metadata",
    "read_snapshots",
    "replicate",
    "restore",
    "restore_params",
    "save",
    "scale_pixels",
    "shard_batch",
    "shard_map_step",
    "state_shardings",
    "to_host",
    "token_windows",
    "warmup_ema",
]
