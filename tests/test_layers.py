"""Imports go only downward: what each room may import, read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = [
    {"types", "tree", "ode", "divergence", "_xla"},
    {"noise", "flows", "quantize", "attention"},
    {"prediction"},
    {"losses", "guidance", "samplers", "likelihood", "metrics", "decode"},
    {"nn"},
    {"train"},
]
LAYER = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
# Sharding rules know parameter paths, not models.
APART = {("train", "nn")}
# Only these rooms may import these packages.
ONLY = {
    "flax": {"nn"},
    "optax": {"train"},
    "orbax": {"train"},
    "grain": {"train"},
    "tensorboardX": {"train"},
    "tqdm": {"train"},
}
NEVER = {"experiments", "tests", "matplotlib", "chex", "sklearn", "PIL", "absl"}
PRIVATE = {"core", "_src"}
REGISTER = "jax.tree_util.register_dataclass"
SOURCES = sorted((ROOT / "genlib").rglob("*.py"))
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.py"))


def imports(tree: ast.AST, package: str) -> list[tuple[int, str]]:
    """Line and absolute dotted name of everything that a module imports, at any depth.

    `from a import b` counts as `a.b`: b may be a module.
    """
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
    return found


def uses_jax_privates(tree: ast.AST) -> list[int]:
    """Lines that read `jax.core` or `jax._src`, imported or as an attribute."""
    lines = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in PRIVATE
        and isinstance(node.value, ast.Name)
        and node.value.id == "jax"
    ]
    for line, name in imports(tree, ""):
        parts = name.split(".")
        if parts[0] == "jax" and len(parts) > 1 and parts[1] in PRIVATE:
            lines.append(line)
    return lines


def confuses_classes(tree: ast.AST) -> list[int]:
    """Lines that read `tree_util.register_dataclass`; see `tree.register_dataclass`."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr == "register_dataclass"
        and ast.unparse(node.value).endswith("tree_util")
    ] + [line for line, name in imports(tree, "") if name == REGISTER]


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """Say what one module of genlib imports that its layer forbids."""
    tree = ast.parse(source)
    room = module.split(".")[1] if "." in module else None
    package = module if is_package else module.rpartition(".")[0]
    found = [f"{line}: jax internals" for line in uses_jax_privates(tree)]
    found += [f"{line}: {REGISTER}" for line in confuses_classes(tree)]
    for line, name in imports(tree, package):
        top, *rest = name.split(".")
        if top in NEVER or (top in ONLY and room not in ONLY[top]):
            found.append(f"{line}: {room or 'genlib'} imports {top}")
        if top != "genlib" or room is None:
            continue
        other = rest[0] if rest else None
        if other == room:
            continue
        # types is the floor of L0: the others stand on it.
        below = other in LAYER and LAYER[other] < LAYER[room]
        floor = other == "types" and room in LAYERS[0]
        if not (below or floor) or (room, other) in APART:
            found.append(f"{line}: {room} imports {other or 'all of genlib'}")
    return found


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_go_only_downward(path: Path) -> None:
    module = name_of(path)
    room = module.split(".")[1] if "." in module else None
    assert room is None or room in LAYER, f"{room} stands in no layer"
    is_package = path.name == "__init__.py"
    assert violations(path.read_text(), module, is_package=is_package) == []


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_experiments_use_the_public_jax(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert uses_jax_privates(tree) + confuses_classes(tree) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("genlib.noise._paths", "from genlib import samplers"),
        ("genlib.noise._paths", "from genlib.quantize import vq"),  # sideways
        ("genlib.noise._paths", "from ..quantize._vq import vq"),
        ("genlib.noise._paths", "from .. import quantize"),
        ("genlib.noise._paths", "import genlib"),
        ("genlib.losses._denoising", "import genlib.samplers"),
        ("genlib.samplers._loop", "def f():\n    from genlib.guidance import x"),
        ("genlib.train._step", "from genlib import nn"),
        ("genlib.types", "from genlib import tree"),
        ("genlib.samplers._loop", "from flax import nnx"),
        ("genlib.nn._mlp", "import optax"),
        ("genlib.nn._mlp", "import orbax.checkpoint as ocp"),
        ("genlib.train._loop", "from experiments import data"),
        ("genlib", "import flax"),
        ("genlib.noise._paths", "import jax.core"),
        ("genlib.noise._paths", "from jax import core"),
        ("genlib.noise._paths", "from jax._src.core import Tracer"),
        ("genlib.noise._paths", "import jax\nx = jax.core.Tracer"),
        ("genlib.noise._paths", "import jax\njax.tree_util.register_dataclass(Path)"),
        ("genlib.noise._paths", "from jax.tree_util import register_dataclass"),
    ],
)
def test_a_planted_violation_is_found(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("genlib.noise._paths", "from genlib.types import Array"),
        ("genlib.noise._paths", "from genlib.noise._path import Path"),
        ("genlib.noise._paths", "from ._path import Path\nfrom . import _path"),
        ("genlib.tree", "from genlib.types import Array"),
        ("genlib.samplers._loop", "from genlib import noise, prediction"),
        ("genlib.nn._mlp", "from flax import nnx\nimport einops"),
        ("genlib.train._step", "import optax\nimport orbax.checkpoint as ocp"),
        ("genlib.train._step", "import jax\nx = jax.tree.map"),
    ],
)
def test_a_downward_import_passes(module: str, source: str) -> None:
    assert violations(source, module) == []


def test_importing_genlib_stays_light() -> None:
    script = (
        "import sys, genlib\n"
        "heavy = ['flax', 'optax', 'orbax', 'grain', 'matplotlib', 'diffrax',"
        " 'tensorboardX', 'tqdm', 'experiments', 'genlib.nn', 'genlib.train']\n"
        "print(*[name for name in heavy if name in sys.modules])\n"
        "from genlib import nn, train\n"
        "print(*[name for name in ('matplotlib', 'grain') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "\n\n"
