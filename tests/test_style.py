"""Budgets and documentation of every file, read from the source."""

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILE_LINES = 400
BODY_LINES = 60
SOURCES = sorted(
    path for top in ("genlib", "experiments") for path in (ROOT / top).rglob("*.py")
)
ROOMS = sorted((ROOT / "genlib").glob("*/__init__.py"))
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def docstring(node: Definition | ast.Module) -> str:
    """Return the docstring, empty where there is none."""
    return ast.get_docstring(node) or ""


def base_names(node: ast.ClassDef) -> set[str]:
    """Return the bases of a class by their last name."""
    bases = [
        base.value if isinstance(base, ast.Subscript) else base for base in node.bases
    ]
    return {ast.unparse(base).rpartition(".")[2] for base in bases}


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines of a function below its signature and docstring."""
    body = node.body[1:] if docstring(node) else node.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def public(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Definition]]:
    """Yield the public functions, classes and methods of a module or class body."""
    for node in body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, f"{prefix}{node.name}.")


def over_budget(source: str) -> list[str]:
    """Name the functions that are longer than a reader can hold in mind."""
    return [
        f"{node.name} has {body_lines(node)} lines"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and body_lines(node) > BODY_LINES
    ]


def documented_methods(sources: Iterable[str]) -> dict[str, set[str]]:
    """Map the name of each class to the methods that it documents."""
    found: dict[str, set[str]] = defaultdict(set)
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                found[node.name] |= {
                    name for name, method in public(node.body) if docstring(method)
                }
    return found


def undocumented(source: str, inherited: dict[str, set[str]]) -> list[str]:
    """Name what is public and has no docstring, the module itself included.

    A method that a base class documents has that docstring.
    """
    tree = ast.parse(source)
    from_bases = {
        f"{node.name}.{method}"
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        for base in base_names(node)
        for method in inherited.get(base, ())
    }
    names = [name for name, node in public(tree.body) if not docstring(node)]
    missing = [] if docstring(tree) else ["the module"]
    return missing + [name for name in names if name not in from_bases]


def door_faults(source: str) -> list[str]:
    """Say where a room's `__init__` does more than re-export."""
    tree = ast.parse(source)
    listed, imported, faults = None, [], []
    for node in tree.body[1:]:
        match node:
            case ast.ImportFrom():
                imported += [alias.asname or alias.name for alias in node.names]
            case ast.Assign(targets=[ast.Name(id="__all__")]):
                listed = ast.literal_eval(node.value)
            case _:
                faults.append(f"line {node.lineno} does more than re-export")
    if not docstring(tree):
        faults.append("there is no docstring")
    if listed is None:
        faults.append("there is no __all__")
    elif sorted(listed) != sorted(imported):
        faults.append(f"__all__ differs: {sorted(set(listed) ^ set(imported))}")
    return faults


def door(init: Path) -> Iterator[tuple[str, Path, str]]:
    """Yield what a room re-exports: its name there, its file and its name in it."""
    for node in ast.parse(init.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            path = ROOT / f"{node.module.replace('.', '/')}.py"
            for alias in node.names:
                yield alias.asname or alias.name, path, alias.name


def without_example(source: str, name: str) -> bool:
    """Tell whether a public function or class has neither `>>>` nor `No example:`.

    The line `No example: why` stands where an example cannot be short. Results
    (NamedTuple) and contracts (Protocol) are shown by the functions that use them.
    """
    for node in ast.parse(source).body:
        if isinstance(node, Definition) and node.name == name:
            bases = base_names(node) if isinstance(node, ast.ClassDef) else set()
            text = docstring(node)
            shown = ">>>" in text or "No example: " in text
            return not shown and not bases & {"NamedTuple", "Protocol"}
    return False  # a constant or an alias: the door says what it is


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_files_and_functions_keep_their_budgets(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= FILE_LINES
    assert over_budget(source) == []


@pytest.fixture(scope="module")
def inherited() -> dict[str, set[str]]:
    """What base classes document, read once."""
    return documented_methods(source.read_text() for source in SOURCES)


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_every_public_name_is_documented(
    path: Path, inherited: dict[str, set[str]]
) -> None:
    assert undocumented(path.read_text(), inherited) == []


@pytest.mark.parametrize("init", ROOMS, ids=relative)
def test_a_room_only_re_exports(init: Path) -> None:
    assert door_faults(init.read_text()) == []


@pytest.mark.parametrize("init", ROOMS, ids=relative)
def test_a_room_lists_what_is_there(init: Path) -> None:
    text = docstring(ast.parse(init.read_text()))
    assert [name for name, _, _ in door(init) if name not in text] == []


@pytest.mark.parametrize("init", ROOMS, ids=relative)
def test_every_public_callable_has_an_example(init: Path) -> None:
    missing = [
        f"{relative(path)}: {name}"
        for name, path, inside in door(init)
        if without_example(path.read_text(), inside)
    ]
    assert missing == []


def test_planted_faults_are_found() -> None:
    long = "def f():\n" + "    x = 1\n" * (BODY_LINES + 1)
    assert over_budget(long) == [f"f has {BODY_LINES + 1} lines"]
    assert over_budget("def f():\n" + "    x = 1\n" * BODY_LINES) == []
    documented = '"""M."""\ndef f():\n    """F."""\nclass A:\n    """A."""\n'
    assert undocumented(documented, {}) == []
    method = documented + "    def g(self): return 1\n"
    assert undocumented(method, {}) == ["A.g"]
    assert undocumented("def f(): return 1\ndef _g(): return 1", {}) == [
        "the module",
        "f",
    ]
    child = '"""M."""\nclass B(m.A):\n    """B."""\n    def g(self): return 1\n'
    base = documented_methods(['class A:\n    def g(self):\n        """G."""'])
    assert undocumented(child, base) == []
    assert undocumented(child, documented_methods([method])) == ["B.g"]
    room = '"""Room."""\nfrom genlib.a._b import c\n'
    assert door_faults(room + '__all__ = ["c"]') == []
    assert door_faults(room + '__all__ = ["c", "d"]') == ["__all__ differs: ['d']"]
    assert door_faults(room) == ["there is no __all__"]
    assert door_faults(room + '__all__ = ["c"]\nx = 1') == [
        "line 4 does more than re-export"
    ]
    assert without_example('def c():\n    """C."""', "c")
    assert not without_example('def c():\n    """C.\n\n    >>> c()\n    """', "c")
    assert not without_example('def c():\n    """C.\n\n    No example: x."""', "c")
    assert without_example('class c:\n    """C."""', "c")
    assert not without_example('class c(NamedTuple):\n    """C."""', "c")
