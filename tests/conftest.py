"""What every test stands on: eight CPU devices, strict arrays, and no window.

`JAX_PLATFORMS=cuda,cpu pytest` runs the same tests with an accelerator as the default.
"""

import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

# Before jax is imported, and inherited by the processes that tests start.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE / "genlib-jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # traces a tenth faster
# The tests are thousands of programs that run once, so compile them fast and run them
# slowly. `XLA_FLAGS= pytest` compiles as users do.
_FLAGS = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
]
if version("jaxlib").startswith("0.10."):  # XLA stops at a flag that it has no more
    _FLAGS += ["--xla_cpu_use_fusion_emitters=false"]
os.environ.setdefault("XLA_FLAGS", " ".join(_FLAGS))

import gc

import hypothesis
import jax
import pytest

# Tracing makes many objects and little garbage.
gc.set_threshold(100_000, 20, 20)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples every time, and no deadline: the first one compiles.
hypothesis.settings.register_profile(
    "genlib", deadline=None, derandomize=True, max_examples=50
)
hypothesis.settings.load_profile("genlib")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module", autouse=True)
def few_programs() -> Iterator[None]:
    """Forget compiled programs before Linux's limit of 65530 memory maps a process.

    Each program takes six; beyond the limit the process dies of a segmentation fault.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture
def x64() -> Iterator[None]:
    """Run a test with float64 as the default float."""
    with jax.enable_x64(True):
        yield


def _data_directory(inside: str) -> Path:
    where = os.environ.get("GENLIB_DATA")
    if not where:
        pytest.skip("GENLIB_DATA names no directory of data sets")
    path = Path(where) / inside
    if not path.is_dir():
        pytest.skip(f"GENLIB_DATA={where} holds no {inside}")
    return path


@pytest.fixture
def mnist_directory() -> Path:
    """The folder of the official MNIST files, $GENLIB_DATA/mnist."""
    return _data_directory("mnist")


@pytest.fixture
def cifar10_directory() -> Path:
    """The folder of the official CIFAR-10 files, $GENLIB_DATA/cifar-10-batches-bin."""
    return _data_directory("cifar-10-batches-bin")
