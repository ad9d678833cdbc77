"""Each notebook is run, and is the same as the source beside it.

After a change of `notebooks/NAME.py`:

    jupytext --to ipynb notebooks/NAME.py
    jupyter execute --inplace notebooks/NAME.ipynb
"""

import ast
from pathlib import Path

import jupytext
import nbformat
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
SOURCES = sorted(FOLDER.glob("*.py"))


def cells(notebook: nbformat.NotebookNode) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source.strip()) for cell in notebook.cells]


def test_every_notebook_has_its_source() -> None:
    run = {path.stem for path in FOLDER.glob("*.ipynb")}
    assert run == {path.stem for path in SOURCES}


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_run_notebook_is_its_source(source: Path) -> None:
    run = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    assert cells(run) == cells(jupytext.read(source))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_notebook_was_run_from_top_to_bottom(source: Path) -> None:
    run = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    code = [cell for cell in run.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in code]
    assert counts == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert all(output.output_type != "error" for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_notebook_ends_in_an_assertion(source: Path) -> None:
    assert isinstance(ast.parse(source.read_text()).body[-1], ast.Assert)
