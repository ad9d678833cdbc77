"""Pictures read back pixel by pixel, and tables as text."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import plots


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scale", [1, 3])
def test_grid_shows_every_pixel_as_a_square(tmp_path, channels, scale) -> None:
    images = np.random.RandomState(0).randint(0, 256, (6, 4, 5, channels))
    path = plots.grid(
        images / 127.5 - 1, 2, 3, tmp_path / "new" / "grid.png", scale=scale
    )
    sheet = read(path)
    sheet = sheet.reshape(*sheet.shape[:2], channels)
    high, wide = 4 * scale + 2, 5 * scale + 2
    assert sheet.shape == (2 * high + 2, 3 * wide + 2, channels)
    shown = np.full_like(sheet, 255)
    for i in range(6):
        top, left = 2 + (i // 3) * high, 2 + (i % 3) * wide
        square = images[i].repeat(scale, 0).repeat(scale, 1)
        shown[top : top + 4 * scale, left : left + 5 * scale] = square
    np.testing.assert_array_equal(sheet, shown)


def test_grid_shows_values_outside_the_range_as_its_ends(tmp_path) -> None:
    images = np.array([-7.0, 0.0, 7.0]).reshape(3, 1, 1, 1)
    path = plots.grid(images, 1, 3, tmp_path / "grid.png", scale=1)
    assert read(path)[2, 2:-2:3].tolist() == [0, 128, 255]


def test_grid_makes_small_images_large_enough_to_see(tmp_path) -> None:
    path = plots.grid(np.zeros((1, 8, 8, 1)), 1, 1, tmp_path / "grid.png")
    assert read(path).shape == (68, 68)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (np.zeros((4, 8, 8)), {}, r"got \(4, 8, 8\)"),
        (np.zeros((4, 8, 8, 2)), {}, r"got \(4, 8, 8, 2\)"),
        (np.zeros((5, 8, 8, 1)), {}, r"2 \* 2 many, got 5"),
        (np.full((4, 8, 8, 1), np.nan), {}, "4 of 4 are not"),
        (np.zeros((4, 8, 8, 1)), {"scale": -1}, "scale must be 0 or more, got -1"),
    ],
)
def test_grid_refuses_other_images(tmp_path, images, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        plots.grid(images, 2, 2, tmp_path / "grid.png", **options)
    assert not (tmp_path / "grid.png").exists()


def test_loss_curve_draws_what_the_file_holds(tmp_path) -> None:
    rows = [{"step": k, "loss": 1 / (k + 1), "grad_norm": 2.0} for k in range(100)]
    rows.append({"step": 100, "accuracy": 0.5})  # an evaluation has other names
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    one = plots.loss_curve(metrics, tmp_path / "a" / "loss.png")
    two = plots.loss_curve(metrics, tmp_path / "two.png", names=("loss", "grad_norm"))
    height, width, _ = read(one).shape
    assert read(two).shape[:2] == (height, 2 * width)
    assert read(one)[..., :3].std() > 0
    with pytest.raises(ValueError, match=r"among \['accuracy', 'grad_norm', 'loss'\]"):
        plots.loss_curve(metrics, tmp_path / "x.png", names=("fd",))
    with pytest.raises(ValueError, match="metrics must be a file"):
        plots.loss_curve(tmp_path / "none.jsonl", tmp_path / "x.png")


def test_table_lines_up_numbers_and_words() -> None:
    rows = [
        {"solver": "heun", "nfe": 19, "FD": 0.44444, "good": True},
        {"solver": "dpmpp_2m", "nfe": np.int64(5), "FD": np.float32(12), "good": False},
    ]
    assert plots.table(rows, digits=2).splitlines() == [
        "| solver   | nfe |    FD | good  |",
        "|----------|----:|------:|-------|",
        "| heun     |  19 |  0.44 | True  |",
        "| dpmpp_2m |   5 | 12.00 | False |",
    ]


def test_table_refuses_rows_that_do_not_match() -> None:
    with pytest.raises(ValueError, match="rows must not be empty"):
        plots.table([])
    with pytest.raises(ValueError, match=r"the keys \['a'\], got \['b'\]"):
        plots.table([{"a": 1}, {"b": 1}])
