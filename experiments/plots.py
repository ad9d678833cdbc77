"""Pictures and tables of a run: sample grids, curves, densities and text tables."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np


def grid(
    images: np.ndarray, rows: int, cols: int, path: str | os.PathLike, *, scale: int = 0
) -> Path:
    """Write images as one PNG, row by row, every pixel a crisp square.

    Values outside [-1, 1] are shown as the nearest end, as a screen must.

    Args:
      images: [rows * cols, H, W, C] in [-1, 1], C of 1 (grey) or 3 (RGB); of more
        channels (latents) the first three are shown.
      rows: images from top to bottom, for example one row for each class.
      cols: images from left to right.
      path: of the PNG; its folder is made.
      scale: edge of a pixel in the PNG; 0 chooses one that makes images of about 64.

    Returns:
      The path.

    Raises:
      ValueError: another number, shape or channel count of images, or NaN in them.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> grid(np.zeros((6, 8, 8, 1)), rows=2, cols=3, path=f"{folder}/zeros.png").name
    'zeros.png'
    """
    from PIL import Image

    images = np.asarray(images, np.float32)
    if images.ndim != 4 or images.shape[-1] in (0, 2):
        raise ValueError(
            f"images must be [N, H, W, C] with C of 1, 3 or more, got {images.shape}"
        )
    images = images[..., :3]
    if rows < 1 or cols < 1 or len(images) != rows * cols:
        raise ValueError(
            f"images must be rows * cols = {rows} * {cols} many, got {len(images)}"
        )
    if not np.isfinite(images).all():
        broken = int((~np.isfinite(images).all(axis=(1, 2, 3))).sum())
        raise ValueError(f"images must be finite, {broken} of {len(images)} are not")
    if scale < 0:
        raise ValueError(f"scale must be 0 or more, got {scale}")
    _, height, width, channels = images.shape
    scale = scale or max(1, round(64 / max(height, width)))
    pixels = np.round((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)
    pixels = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    gap = 2
    pixels = np.pad(pixels, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    pixels = pixels.reshape(rows, cols, *pixels.shape[1:]).swapaxes(1, 2)
    sheet = pixels.reshape(rows * pixels.shape[1], -1, channels)
    sheet = np.pad(sheet, ((gap, 0), (gap, 0), (0, 0)), constant_values=255)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet[..., 0] if channels == 1 else sheet).save(path, format="PNG")
    return path


def loss_curve(
    metrics: str | os.PathLike,
    path: str | os.PathLike,
    *,
    names: Sequence[str] = ("loss",),
) -> Path:
    """Draw values of a `metrics.jsonl` against the step, with a running mean.

    Args:
      metrics: the file, one JSON object a line, each with a `step`.
      path: of the PNG; its folder is made.
      names: the values to draw, one panel each.

    Returns:
      The path.

    Raises:
      ValueError: a missing file, or a name that no line has.
    """
    from matplotlib.figure import Figure  # not pyplot: no global state, no window

    if not Path(metrics).is_file():
        raise ValueError(f"metrics must be a file, got {os.fspath(metrics)!r}")
    rows = [json.loads(line) for line in Path(metrics).read_text().splitlines()]
    figure = Figure(figsize=(5 * len(names), 3.2), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    for name, axis in zip(names, axes, strict=True):
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        if not points:
            known = sorted(set().union(*rows) - {"step"})
            raise ValueError(f"names must be among {known}, got {name!r}")
        steps, values = np.array(points, float).T
        window = max(1, len(values) // 20)
        smooth = np.convolve(values, np.full(window, 1 / window), mode="valid")
        axis.plot(steps, values, color="C0", alpha=0.3, linewidth=1)
        middle = steps[(window - 1) // 2 :][: len(smooth)]
        axis.plot(middle, smooth, color="C0")
        if values.min() > 0:
            axis.set_yscale("log")
        axis.set(xlabel="step", ylabel=name)
        axis.grid(alpha=0.3)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def density(
    x: np.ndarray,
    y: np.ndarray,
    log_density: np.ndarray,
    points: Mapping[str, np.ndarray],
    path: str | os.PathLike,
) -> Path:
    """Draw a density in the plane, and sets of points beside it on the same axes.

    Args:
      x: places [W] in ascending order, evenly spaced.
      y: places [H].
      log_density: in nats at these places, [H, W].
      points: sets [N, 2], each with its title.
      path: of the PNG; its folder is made.

    Returns:
      The path.

    Raises:
      ValueError: if the sizes do not match.
    """
    from matplotlib.figure import Figure

    if log_density.shape != (len(y), len(x)):
        raise ValueError(
            f"log_density must be [H, W] = {(len(y), len(x))}, got {log_density.shape}"
        )
    panels = 1 + len(points)
    figure = Figure(figsize=(4 * panels, 3.2), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False, sharex=True, sharey=True)[0]
    extent = (float(x[0]), float(x[-1]), float(y[0]), float(y[-1]))
    axes[0].imshow(np.exp(log_density), origin="lower", extent=extent, cmap="viridis")
    axes[0].set(title="density")
    for axis, (title, rows) in zip(axes[1:], points.items(), strict=True):
        axis.plot(*np.asarray(rows).T, ".", color="tab:blue", markersize=1.5)
        axis.set(title=title, aspect="equal")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path


def table(rows: Sequence[Mapping[str, object]], *, digits: int = 3) -> str:
    """Format rows as a Markdown table that also reads well in a terminal.

    Args:
      rows: one mapping a row, all with the same keys: the column titles.
      digits: decimals of floats.

    Returns:
      The table, without a newline at its end.

    Raises:
      ValueError: no rows, or rows with different keys.

    >>> print(table([{"solver": "ddim", "FD": 0.47}, {"solver": "heun", "FD": 0.4}]))
    | solver |    FD |
    |--------|------:|
    | ddim   | 0.470 |
    | heun   | 0.400 |
    """
    if not rows:
        raise ValueError("rows must not be empty")
    titles = list(rows[0])
    for row in rows:
        if list(row) != titles:
            raise ValueError(f"rows must all have the keys {titles}, got {list(row)}")
    columns = [[row[title] for row in rows] for title in titles]
    numeric = [all(_is_number(cell) for cell in column) for column in columns]
    texts = [
        [title, *(_text(cell, digits) for cell in column)]
        for title, column in zip(titles, columns, strict=True)
    ]
    widths = [max(map(len, column)) for column in texts]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, numeric, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = "|".join(
        "-" * (width + 1) + (":" if right else "-")
        for width, right in zip(widths, numeric, strict=True)
    )
    head, *body = [line(cells) for cells in zip(*texts, strict=True)]
    return "\n".join([head, f"|{rule}|", *body])


def _is_number(cell: object) -> bool:
    return isinstance(cell, int | float | np.number) and not isinstance(cell, bool)


def _text(cell: object, digits: int) -> str:
    if isinstance(cell, float | np.floating):
        return f"{float(cell):.{digits}f}"
    return str(cell)
