"""What is measured of a run, as a table and as JSON."""

import json
from pathlib import Path
from typing import Any

from experiments import plots
from experiments._cli import say
from genlib import train


def write_rows(rows: list[dict[str, Any]], workdir: Path, *, digits: int = 4) -> None:
    """Print rows as a table and write `table.md` and `results.json`, in one process."""
    if not train.is_main():
        return
    table = plots.table(rows, digits=digits)
    (workdir / "table.md").write_text(table + "\n")
    (workdir / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    say(f"\n{table}\n")
