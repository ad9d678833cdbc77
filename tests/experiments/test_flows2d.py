"""The table of two-dimensional flows, in small."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import flows2d


def test_the_distributions_are_the_usual_ones(key):
    draw = lambda of: np.asarray(flows2d.independent(of, key, 20_000))
    points = draw(flows2d.gaussians)
    angle = np.arctan2(points[:, 1], points[:, 0])
    nearest = np.round(angle / (np.pi / 4)) % 8
    np.testing.assert_allclose(
        np.bincount(nearest.astype(int)) / 20_000, 1 / 8, atol=0.01
    )
    centre = 5 * np.stack([np.cos(nearest * np.pi / 4), np.sin(nearest * np.pi / 4)], 1)
    np.testing.assert_allclose((points - centre).std(), 0.1**0.25, rtol=0.02)

    points = (draw(flows2d.moons) + 1) / 3
    # Up to a shift of both coordinates by as much, each lies on one of two circles.
    shift = np.linspace(0, 0.2, 401)[None]
    x, y = (points[:, i, None] - shift for i in (0, 1))
    upper = np.where(y >= -1e-3, abs(np.hypot(x, y) - 1), 9).min(1)
    lower = np.where(y <= 0.501, abs(np.hypot(x - 1, y - 0.5) - 1), 9).min(1)
    assert np.minimum(upper, lower).max() < 1e-3
    np.testing.assert_allclose((upper < lower).mean(), 0.5, atol=0.03)


def test_even_draws_have_equal_modes(key):
    points = np.asarray(flows2d.even(flows2d.gaussians, key, 80))
    nearest = np.round(np.arctan2(points[:, 1], points[:, 0]) / (np.pi / 4)) % 8
    np.testing.assert_array_equal(np.bincount(nearest.astype(int)), 10)


def test_the_velocity_network_is_small(key):
    params, apply = flows2d.nn.from_nnx(flows2d.Velocity(rngs=flows2d.nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 8706
    assert apply(params, jnp.ones((5, 2)), jnp.ones(5)).shape == (5, 2)


def test_one_command_writes_the_table_and_the_picture(tmp_path, monkeypatch, capsys):
    methods = {"OT-CFM": flows2d.METHODS["OT-CFM"]}
    methods["re-flow"] = flows2d.METHODS["re-flow"]._replace(reflow="OT-CFM")
    small = {"BATCH": 8, "POOL": 16, "STEPS": 3, "METHODS": methods}
    for name, value in small.items():
        monkeypatch.setattr(flows2d, name, value)
    flows2d.main([f"--workdir={tmp_path}", "--steps=2", "--samples=12"])
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [row["method"] for row in rows] == list(methods)
    for row in rows:
        values = [value for name, value in row.items() if name != "method"]
        assert len(values) == 4
        assert np.isfinite(values).all()
        assert min(values) >= 0
    assert (tmp_path / "table.md").read_text() in capsys.readouterr().out + "\n"
    with Image.open(tmp_path / "flows.png") as picture:
        assert picture.size[0] > 1.5 * picture.size[1]


def test_mistakes(tmp_path):
    with pytest.raises(SystemExit, match=r"error: steps must be at least 1 .* got 0"):
        flows2d.main([f"--workdir={tmp_path}", "--steps=0"])
    with pytest.raises(SystemExit, match="2"):
        flows2d.main(["--source=rings"])
