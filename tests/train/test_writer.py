import importlib
import json
import sys

import jax.numpy as jnp
import pytest

from genlib import train


def lines(folder):
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]


def test_lines_are_numbers_under_their_step(tmp_path):
    writer = train.Metrics(tmp_path / "new")
    writer.write(1, {"loss": jnp.float32(0.5), "skipped": 0})
    writer.write(2, {"loss": float("nan"), "skipped": jnp.int32(3)})
    first, second = lines(tmp_path / "new")
    assert 0 <= second.pop("time") - first.pop("time") < 60
    assert first == {"step": 1, "loss": 0.5, "skipped": 0}
    assert second == {"step": 2, "loss": None, "skipped": 3}


@pytest.mark.parametrize("tail", ['{"step": 2, "lo', '{"step": 2, "loss": 0}'])
def test_rewind_leaves_each_step_once(tmp_path, tail):
    writer = train.Metrics(tmp_path)
    for step in range(1, 6):
        writer.write(step, {"loss": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(tail)  # a process died here
    again = train.Metrics(tmp_path)
    again.rewind(3)
    for step in range(4, 7):
        again.write(step, {"loss": 10 * step})
    assert [x["step"] for x in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert [x["loss"] for x in lines(tmp_path)] == [1, 2, 3, 40, 50, 60]


@pytest.mark.parametrize("bad", [jnp.ones(2), "high", None])
def test_values_are_scalars(tmp_path, bad):
    with pytest.raises(ValueError, match="loss must be a scalar number"):
        train.Metrics(tmp_path).write(1, {"loss": bad})


def test_tensorboard_missing_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ValueError, match="pip install tensorboardX"):
        train.Metrics(tmp_path, tensorboard=True)


def test_tensorboard_gets_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboardX")
    proto = importlib.import_module("tensorboardX.proto.event_pb2")
    writer = train.Metrics(tmp_path, tensorboard=True)
    writer.rewind(0)
    writer.write(3, {"loss": 0.25, "bad": float("inf")})
    writer.close()
    (events,) = tmp_path.glob("events.out.tfevents.*")
    event_type = proto.Event
    values, data = {}, events.read_bytes()
    while data:
        size = int.from_bytes(data[:8], "little")
        event = event_type.FromString(data[12 : 12 + size])
        for value in event.summary.value:
            values[value.tag, event.step] = value.simple_value
        data = data[16 + size :]
    assert values == {("loss", 3): 0.25}
