"""Parameters as a safetensors file, which every framework reads."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genlib import tree
from genlib.train._distributed import barrier, is_main, to_host

_DTYPES = ["bool", "bfloat16", "float16", "float32", "float64"]
_DTYPES += [f"{sign}int{width}" for sign in ("", "u") for width in (8, 16, 32, 64)]


def export_safetensors(
    path: str | os.PathLike[str],
    params: Any,
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write parameters to a safetensors file under dotted names, bit for bit.

    The name of a leaf is its path, "blocks.mlp.kernel". The file appears when it is
    complete. With several processes all must call it, and process 0 writes.

    Args:
      path: of the file; one that is there is replaced.
      params: pytree of arrays, sharded or not.
      metadata: strings stored in the header (`safetensors.safe_open(...).metadata()`).

    Raises:
      ValueError: if a leaf is no array of numbers that safetensors knows, if two have
        the same name, or if `metadata` holds anything but strings.
      ImportError: if safetensors is not installed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_safetensors(f"{folder}/x.safetensors", {"mlp": {"w": jnp.ones(2)}})
    ...     import_safetensors(f"{folder}/x.safetensors", {"mlp": {"w": jnp.zeros(2)}})
    {'mlp': {'w': Array([1., 1.], dtype=float32)}}
    """
    numpy = _library().numpy
    metadata = dict(metadata or {})
    for entry in [*metadata, *metadata.values()]:
        if not isinstance(entry, str):
            raise ValueError(f"metadata must hold strings only; it holds {entry!r}")
    tensors = {}
    for name, leaf in _dotted("params", params).items():
        dtype = getattr(leaf, "dtype", type(leaf))
        if str(dtype) not in _DTYPES:
            raise ValueError(f"params must hold numbers; {name} is {dtype}")
        tensors[name] = np.ascontiguousarray(to_host(leaf)).reshape(leaf.shape)
    if is_main():
        scratch = Path(f"{os.fspath(path)}.tmp")
        numpy.save_file(tensors, scratch, metadata=metadata)
        scratch.replace(path)
    barrier("export_safetensors")


def import_safetensors(
    path: str | os.PathLike[str], like: Any, *, cast: bool = False
) -> Any:
    """Read parameters from a safetensors file with dotted names.

    Args:
      path: of a file that `export_safetensors`, or anything else, has written.
      like: pytree of arrays or `jax.ShapeDtypeStruct`s with the same names and shapes,
        on whose shardings the result is put.
      cast: convert floats to the dtypes of `like`; without it others are refused.

    Returns:
      A pytree like `like`.

    Raises:
      ValueError: if there is no such file, or its names, shapes or dtypes are others;
        the message names the first that differ.
      ImportError: if safetensors is not installed.

    >>> import_safetensors("/nowhere.safetensors", {"w": jnp.ones(2)})
    Traceback (most recent call last):
    ValueError: path must be a safetensors file; /nowhere.safetensors is none
    """
    library, leaves = _library(), _dotted("like", like)
    try:
        with library.safe_open(os.fspath(path), "numpy") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, library.SafetensorError) as error:
        raise ValueError(f"path must be a safetensors file; {path} is none") from error
    for name in sorted(leaves.keys() ^ found.keys()):
        where = "the file, not in like" if name in found else "like, not in the file"
        raise ValueError(f"like must have the names of {path}; {name} is in {where}")

    def put(name: str, leaf: Any) -> jax.Array:
        value = found[name]
        if cast and tree.is_float(leaf) and tree.is_float(value):
            value = value.astype(leaf.dtype)
        if (value.shape, value.dtype) != (leaf.shape, leaf.dtype):
            raise ValueError(
                f"like must hold the arrays of {path}; there {name} is {value.dtype}"
                f"{list(value.shape)}, in like {leaf.dtype}{list(leaf.shape)}"
            )
        sharding = getattr(leaf, "sharding", None)
        if sharding is None:
            return jnp.asarray(value)
        return jax.make_array_from_callback(value.shape, sharding, value.__getitem__)

    put_all = [put(name, leaf) for name, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(like), put_all)


def _dotted(argument: str, values: Any) -> dict[str, Any]:
    leaves = {}
    for path, leaf in tree.named(values).items():
        name = path.replace("/", ".")
        if not name or name in leaves:
            raise ValueError(
                f"{argument} must have one leaf of each name; {name!r} is none or two"
            )
        leaves[name] = leaf
    return leaves


def _library() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "safetensors files need safetensors: pip install genlib[safetensors]"
        ) from error
    return safetensors
