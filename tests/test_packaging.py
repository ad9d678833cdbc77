"""The wheel holds what a user runs, and declares what the code imports."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Packages whose import name is not their own.
DISTRIBUTION = {
    "PIL": "pillow",
    "absl": "absl-py",
    "orbax": "orbax-checkpoint",
    "sklearn": "scikit-learn",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_every_module_and_no_test(wheel) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {
        path.relative_to(ROOT).as_posix()
        for top in ("genlib", "experiments")
        for path in (ROOT / top).rglob("*.py")
    }
    rest = {name for name in names - modules if ".dist-info/" not in name}
    assert modules <= names
    launch = {name for name in rest if name.startswith("experiments/launch/")}
    assert rest - launch == {"genlib/py.typed"}
    assert launch
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheel_imports_outside_the_checkout(wheel, tmp_path) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import genlib, experiments\n"
        "from experiments import data, plots\n"
        "print(genlib.__file__, experiments.__file__, sep='\\n')"
    )
    result = subprocess.run(
        [sys.executable, "-P", "-c", script, str(wheel)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    for line in result.stdout.splitlines():
        assert line.startswith(str(wheel))


def test_one_version_everywhere() -> None:
    import genlib

    newest = re.search(r"^## \[(\d.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest is not None
    assert genlib.__version__ == newest[1] == PROJECT["version"]
    assert importlib.metadata.version("genlib") == PROJECT["version"]


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def imported(folder: str) -> set[str]:
    """Name the distributions that the modules of a folder import, at any depth."""
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    found -= {"genlib", "experiments", *sys.stdlib_module_names}
    return {canonicalize_name(DISTRIBUTION.get(name, name)) for name in found}


def test_every_import_is_declared() -> None:
    base = names(PROJECT["dependencies"])
    adaptive, data, safetensors, extra, bench = (
        names(PROJECT["optional-dependencies"][name])
        for name in ("adaptive", "data", "safetensors", "experiments", "bench")
    )
    assert imported("genlib") <= base | adaptive | data | safetensors
    benchmarks = imported("experiments/benchmarks")
    assert imported("experiments") - benchmarks <= base | extra
    assert benchmarks <= base | extra | bench


def test_only_lower_bounds() -> None:
    groups = PROJECT["optional-dependencies"].values()
    for text in [
        *PROJECT["dependencies"],
        *(line for group in groups for line in group),
    ]:
        requirement = Requirement(text)
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators == {">="} or requirement.name == "genlib", text
