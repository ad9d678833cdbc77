"""The table of encodings beyond the training length, in small."""

import json

import numpy as np
import pytest
from PIL import Image

from experiments import extrapolation


@pytest.fixture
def small(monkeypatch):
    sizes = {"features": 32, "depth": 1, "num_heads": 1}
    for name, value in {"SIZES": sizes, "TRAIN_LENGTH": 8, "LENGTH": 64}.items():
        monkeypatch.setattr(extrapolation, name, value)
    monkeypatch.setattr(extrapolation, "BATCH", 2)


def test_the_text_is_that_of_other_modules():
    tokens, held_out = extrapolation.sources()
    assert tokens.dtype == held_out.dtype == np.uint8
    assert len(tokens) > 5 * len(held_out) > 1e6
    for part in (tokens, held_out):
        assert b"def __init__(self" in part[:1_000_000].tobytes()


def test_encodings_agree_within_what_they_leave_alone(small):
    """Up to the training length, or the window, they are the encoding trained with."""
    encodings = extrapolation.ENCODINGS
    params = extrapolation.nn.from_nnx(extrapolation.model(encodings["none"].layers))[0]
    windows = np.random.default_rng(0).integers(0, 256, (8, 300))
    read = lambda name: extrapolation.read(params, encodings[name].layers, windows)
    rotary, rerope, log_n = map(read, ("rotary", "rerope", "rotary + log-n"))
    assert rotary.shape == (299,)
    np.testing.assert_allclose(rerope[: extrapolation.WINDOW], rotary[:64], 1e-5)
    np.testing.assert_allclose(log_n[:128], rotary[:128], 1e-5)
    assert abs(rerope - rotary)[64:].max() > 1e-5 < abs(log_n - rotary)[128:].max()


def test_one_command_writes_the_table_and_the_picture(small, tmp_path):
    names = ["rotary", "yarn"]
    words = ["--steps=10", "--windows=8", f"--encodings={','.join(names)}"]
    extrapolation.main([f"--workdir={tmp_path}", *words])
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [row["encoding"] for row in rows] == names
    for row in rows:
        values = [row[str(8 << i)] for i in range(4)]
        assert np.isfinite(values).all()
        assert 1 < min(values) < max(values) < 300
    with Image.open(tmp_path / "extrapolation.png") as picture:
        assert picture.size[0] > 500
    assert "| rotary" in (tmp_path / "table.md").read_text()


def test_mistakes_end_in_one_line(capsys):
    for words in (["--encodings=rotary,other"], ["--windows=9"], ["--steps=1"]):
        with pytest.raises(SystemExit, match=r"^error: "):
            extrapolation.main(words)
