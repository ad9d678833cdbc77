"""Batches against their definition: one global stream, whoever reads it, and when."""

import json
import math
import re
import sys

import jax
import numpy as np
import optax
import pytest

from genlib import train
from tests.laws.registry import jit_once
from tests.train import toy

pytest.importorskip("grain")


def numbered(count):
    return train.array_source({"x": np.arange(count)})


def drawn(batches, count):
    """Return the values x of some batches, one row for each batch."""
    return np.stack([next(batches)["x"] for _ in range(count)])


def jitter(example, rng):
    return {"x": example["x"] + rng.random()}


def part(process, processes):
    """Return the rows of 8 that a process has."""
    return np.split(np.arange(8), processes)[process]


def together(count, processes, **settings):
    """Return a pipeline over 23 examples for each process, started `count` deep."""
    shards = []
    for process in range(processes):
        shard = train.pipeline(
            numbered(23),
            8,
            seed=5,
            transforms=[jitter],
            rows=part(process, processes),
            **settings,
        )
        drawn(shard, count) if count else None
        shards.append(shard)
    return shards


def concatenated(shards, count):
    return np.concatenate([drawn(shard, count) for shard in shards], axis=1)


@pytest.mark.parametrize(("count", "size"), [(12, 4), (10, 4), (7, 7), (3, 8)])
def test_every_example_comes_once_an_epoch(count, size):
    stream = drawn(train.pipeline(numbered(count), size, seed=3), 3 * count)
    stream = stream.reshape(-1, count)
    np.testing.assert_array_equal(
        np.sort(stream), np.broadcast_to(np.arange(count), stream.shape)
    )
    assert len({tuple(epoch) for epoch in stream}) > 1
    plain = train.pipeline(numbered(count), size, seed=3, shuffle=False)
    expected = np.arange(5 * size).reshape(5, size) % count
    np.testing.assert_array_equal(drawn(plain, 5), expected)


def test_seeds_give_other_orders():
    first, second = (drawn(train.pipeline(numbered(50), 50, seed=k), 2) for k in (0, 1))
    assert not (first[:, None] == second[None]).all(-1).any()


@pytest.mark.parametrize("processes", [2, 4])
def test_hosts_share_the_batches_of_one(processes):
    """The rows of the processes, in order, are the global batch."""
    alone = concatenated(together(0, 1), 9)
    np.testing.assert_array_equal(concatenated(together(0, processes), 9), alone)


@pytest.mark.parametrize(("before", "after"), [(4, 1), (1, 2), (2, 4)])
def test_a_position_serves_any_number_of_hosts(before, after):
    whole = concatenated(together(0, 1), 10)
    states = [json.dumps(shard.get_state()) for shard in together(7, before)]
    assert len(set(states)) == 1
    shards = together(1, after)  # already somewhere else
    for shard in shards:
        shard.set_state(json.loads(states[0]))
    np.testing.assert_array_equal(concatenated(shards, 3), whole[7:])


@pytest.mark.parametrize(("threads", "prefetch"), [(0, 1), (1, 1), (5, 3)])
def test_threads_change_nothing(threads, prefetch):
    settings = dict(threads=threads, prefetch=prefetch)
    np.testing.assert_array_equal(
        concatenated(together(0, 1, **settings), 6), concatenated(together(0, 1), 6)
    )


def test_the_position_counts_what_was_drawn_not_what_was_made():
    batches = train.pipeline(numbered(9), 2, seed=0, prefetch=6)
    for count in range(4):
        assert batches.get_state()["next_batch"] == count
        next(batches)


def test_transforms_draw_from_epoch_and_example():
    """Draws differ between examples and epochs, and do not depend on the order."""
    source = train.array_source({"i": np.arange(30)})
    stamp = lambda example, rng: {**example, "draws": rng.random(3)}
    settings = dict(seed=1, transforms=[stamp])
    shuffled = train.pipeline(source, 30, **settings)
    plain = train.pipeline(source, 30, shuffle=False, **settings)
    epochs = []
    for _ in range(2):
        one, other = next(shuffled), next(plain)
        order = np.argsort(one["i"])
        np.testing.assert_array_equal(one["draws"][order], other["draws"])
        epochs.append(other["draws"])
    assert len(np.unique(epochs)) == 2 * 30 * 3


def test_transforms_are_applied_in_order():
    steps = [lambda e, rng: {"x": e["x"] + 1}, lambda e, rng: {"x": 10 * e["x"]}]
    batches = train.pipeline(
        numbered(4), 4, seed=0, shuffle=False, transforms=steps, epochs=1
    )
    assert [batch["x"].tolist() for batch in batches] == [[10, 20, 30, 40]]


def test_epochs_end():
    batches = train.pipeline(numbered(10), 4, seed=0, epochs=2)
    assert len(drawn(batches, 5)) == 5
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(batches)
    batches.set_state({**batches.get_state(), "next_batch": 4})
    assert len(list(batches)) == 1


def test_an_error_in_a_thread_loses_no_batch():
    """The batch that failed, not one that was made after it, comes next."""
    broken = [True]

    def sometimes(example, rng):
        if broken[0] and example["x"] == 5:
            raise OSError("the disk is away")
        return example

    settings = dict(seed=0, shuffle=False, transforms=[sometimes])
    batches = train.pipeline(numbered(12), 2, **settings)
    assert drawn(batches, 2).tolist() == [[0, 1], [2, 3]]
    with pytest.raises(OSError, match="the disk is away"):
        next(batches)
    broken[0] = False
    assert drawn(batches, 2).tolist() == [[4, 5], [6, 7]]


def test_a_transform_cannot_change_the_data_set():
    def spoil(example, rng):
        example["x"] *= 0
        return example

    x = np.ones((4, 2))
    batches = train.pipeline(
        train.array_source({"x": x}), 2, seed=0, transforms=[spoil], threads=0
    )
    with pytest.raises(ValueError, match="read-only"):
        next(batches)
    assert (x == 1).all()
    x[:] = 2  # the owner may


def test_a_memory_mapped_file_is_a_source(tmp_path):
    values = np.arange(24, dtype=np.float32).reshape(8, 3)
    np.save(tmp_path / "x.npy", values)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    batch = next(train.pipeline(train.array_source(mapped), 8, seed=0, shuffle=False))
    np.testing.assert_array_equal(batch, values, strict=True)


TX = optax.sgd(1e-2, momentum=0.9)
STEP = jit_once(train.make_step(toy.noisy_loss_fn, TX))


def rows(processes=1):
    shards = [
        train.pipeline(
            train.array_source(toy.batch(0, rows=20)),
            8,
            seed=2,
            rows=part(process, processes),
        )
        for process in range(processes)
    ]
    return shards[0] if processes == 1 else Hosts(shards)


class Hosts:
    """The processes of a run, simulated: their rows are put together."""

    def __init__(self, shards):
        self.shards = shards

    def __next__(self):
        parts = [next(shard) for shard in self.shards]
        return jax.tree.map(lambda *x: np.concatenate(x), *parts)

    def get_state(self):
        return self.shards[0].get_state()

    def set_state(self, state):
        for shard in self.shards:
            shard.set_state(state)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_resumed_run_draws_the_same_batches(tmp_path, processes):
    """Case 36: state and the next three batches, on as many hosts or on fewer."""
    start = lambda: train.init(jax.random.key(0), toy.params(), TX)
    settings = dict(progress=False)
    whole = train.fit(STEP, start(), rows(), steps=7, **settings)
    with train.Checkpointer(tmp_path) as checkpointer:
        settings["checkpointer"] = checkpointer
        train.fit(STEP, start(), rows(processes), steps=4, **settings)
        position = checkpointer.restore(start()).position
        resumed = train.fit(STEP, start(), rows(), steps=7, **settings)
    toy.assert_identical(resumed, whole)
    there, here = rows(), rows()
    there.set_state(position)
    for _ in range(4):
        next(here)
    for _ in range(3):
        toy.assert_identical(next(there), next(here))


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 3, 8, 21])
def test_weighted_sums_are_those_over_all_examples(count, processes):
    """Case 39: the last batch is ragged, or the only one is."""
    value = np.random.default_rng(count).normal(size=count)
    total = weight = 0.0
    seen = []
    for process in range(processes):
        batches = train.eval_batches(
            train.array_source({"v": value, "i": np.arange(count)}),
            8,
            rows=part(process, processes),
        )
        shard = list(batches)
        assert len(shard) == math.ceil(count / 8)
        for batch in shard:
            assert batch["weight"].dtype == np.float32
            assert batch["v"].shape == batch["weight"].shape == (8 // processes,)
            total += (batch["weight"] * batch["v"]).sum()
            weight += batch["weight"].sum()
            seen += batch["i"][batch["weight"] == 1].tolist()
    assert sorted(seen) == list(range(count))
    assert weight == count
    np.testing.assert_allclose(total / weight, value.mean(), rtol=1e-12)


def test_weights_of_tokens_are_kept_in_evaluation():
    packed = train.pack_documents([[1, 2, 3], [4, 5], [6, 7, 8]], 4)
    batches = list(train.eval_batches(train.array_source(packed), 2))
    kept = np.concatenate([batch["weight"] for batch in batches])
    np.testing.assert_array_equal(kept[:3], packed["weight"], strict=True)
    assert kept[3].tolist() == [0, 0, 0, 0]


def test_evaluation_draws_each_example_alike():
    first, second = (
        list(train.eval_batches(numbered(11), size, transforms=[jitter]))
        for size in (4, 11)
    )
    np.testing.assert_array_equal(
        np.concatenate([batch["x"] for batch in first])[:11], second[0]["x"]
    )


def test_an_evaluation_of_no_dicts():
    with pytest.raises(ValueError, match="source must give dicts, to add a weight"):
        next(train.eval_batches([1.0, 2.0], 2))


def make(**changes):
    settings = {"source": numbered(10), "batch_size": 4, "seed": 0, **changes}
    return train.pipeline(**settings)


BAD = {
    "empty": (dict(source=[]), "source must have examples; its length is 0"),
    "a dict": (dict(source={"x": [1]}), "use array_source"),
    "an iterator": (dict(source=iter([1])), "numbered examples and a length"),
    "no rows": (dict(batch_size=0), "batch_size must be positive"),
    "rows too high": (
        dict(rows=[3, 4]),
        "integers in [0, 4), at least one; they are [3",
    ),
    "row too low": (dict(rows=[-1]), "rows must be integers in [0, 4)"),
    "none of the rows": (dict(rows=[]), "rows must be integers in [0, 4)"),
    "rows of another kind": (dict(rows=[[0, 1]]), "rows must be integers in [0, 4)"),
    "seed": (dict(seed=-1), "seed must be in [0, 2**32); it is -1"),
    "no epochs": (dict(epochs=0), "epochs must be at least 1"),
    "no full batch": (dict(batch_size=21, epochs=2), "2 of 10 examples"),
    "threads": (dict(threads=-1), "they are -1 and 8"),
    "prefetch": (dict(prefetch=0), "they are 8 and 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings(case):
    settings, message = BAD[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        make(**settings)


def test_processes_take_equal_parts(monkeypatch):
    """Without rows; on one host of several, as JAX counts them."""
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setattr(jax, "process_index", lambda: 2)
    batches = train.pipeline(numbered(8), 8, seed=0, shuffle=False)
    assert next(batches)["x"].tolist() == [4, 5]
    with pytest.raises(ValueError, match="divide by the 4 processes; it is 6"):
        make(batch_size=6)


@pytest.mark.parametrize(
    ("arrays", "lengths"),
    [
        ({"x": np.zeros(3), "y": np.zeros((4, 2))}, r"arrays/x': 3, 'arrays/y': 4"),
        ({"x": np.zeros(3), "y": 1.0}, r"arrays/y': None"),
        ({}, r"lengths are {}"),
    ],
)
def test_arrays_of_other_lengths(arrays, lengths):
    with pytest.raises(ValueError, match=lengths):
        train.array_source(arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (7, "state must be one of a pipeline; it is 7"),
        ({"next_index": 3}, "state must be one of a pipeline"),
        ({"next_batch": -1}, "next_batch in .*; it is -1"),
        ({"next_batch": 6}, r"state must have a next_batch in \[0, 5\]; it is 6"),
        ({"next_batch": None}, "next_batch in .*; it is None"),
    ],
)
def test_positions_that_are_none(change, message):
    batches = make(epochs=2)
    whole = isinstance(change, dict) and "next_batch" in change
    state = {**batches.get_state(), **change} if whole else change
    with pytest.raises(ValueError, match=message):
        batches.set_state(state)


@pytest.mark.parametrize(
    "changes",
    [dict(seed=1), dict(batch_size=2), dict(shuffle=False), dict(source=numbered(9))],
)
def test_positions_in_other_streams(changes):
    with pytest.raises(ValueError, match="state must be of this stream"):
        make().set_state(make(**changes).get_state())


def test_without_grain_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ImportError, match=r"pip install genlib\[data\]"):
        make()


@pytest.mark.parametrize("stride", [None, 1, 3, 9])
@pytest.mark.parametrize("dtype", [np.uint16, np.int64])
def test_windows_of_a_stream(tmp_path, stride, dtype):
    tokens = np.arange(25, dtype=dtype) + 60_000 * (dtype is np.uint16)
    tokens.tofile(tmp_path / "tokens.bin")
    mapped = np.memmap(tmp_path / "tokens.bin", dtype, "r")
    windows = train.token_windows(mapped, 6, stride=stride)
    expected = np.lib.stride_tricks.sliding_window_view(tokens, 6)[:: stride or 6]
    found = np.stack([window["tokens"] for window in windows])
    np.testing.assert_array_equal(found, expected.astype(np.int32), strict=True)
    with pytest.raises(IndexError):
        windows[len(windows)]


def test_packed_documents_come_out_again():
    rng = np.random.default_rng(0)
    documents = [rng.integers(1, 99, n) for n in rng.integers(0, 20, 40)]
    packed = train.pack_documents(documents, 8)
    found = []
    for row in range(len(packed["tokens"])):
        tokens, segments, positions, weight = (packed[k][row] for k in packed)
        np.testing.assert_array_equal(weight, segments > 0)
        assert (np.diff(segments[segments > 0]) >= 0).all()
        assert (tokens[segments == 0] == 0).all()
        for segment in range(1, segments.max() + 1):
            here = segments == segment
            np.testing.assert_array_equal(positions[here], np.arange(here.sum()))
            found.append(tuple(tokens[here].tolist()))
    pieces = [
        tuple(document[i : i + 8].tolist())
        for document in documents
        for i in range(0, len(document), 8)
    ]
    assert sorted(found) == sorted(pieces)
    assert packed["tokens"].dtype == packed["positions"].dtype == np.int32


def test_packing_is_first_fit():
    """Each document fits into no row before its own, as that was when it came."""
    rng = np.random.default_rng(1)
    documents = [np.full(n, i + 1) for i, n in enumerate(rng.integers(1, 9, 60))]
    tokens = train.pack_documents(documents, 10)["tokens"]
    for number, document in enumerate(documents, start=1):
        row = int(np.argmax((tokens == number).any(1)))
        used = ((tokens > 0) & (tokens < number)).sum(1)
        assert (used[:row] + len(document) > 10).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1]], 0), "length must be positive; it is 0"),
        (([[1], [0.5]], 4), r"documents\[1\] must be integers \[N\]; it is float64"),
        (([[[1, 2]]], 4), r"documents\[0\] must be integers"),
        (([[], []], 4), "documents must have tokens"),
    ],
)
def test_documents_that_cannot_be_packed(arguments, message):
    with pytest.raises(ValueError, match=message):
        train.pack_documents(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.arange(5), 6), "tokens must fill a window of 6; there are 5"),
        ((np.arange(5), 0), "length and stride must be positive"),
        ((np.ones(5), 2), r"tokens must be integers \[N\]; it is float64"),
    ],
)
def test_streams_without_windows(arguments, message):
    with pytest.raises(ValueError, match=message):
        train.token_windows(*arguments)


IMAGE = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)


@pytest.mark.parametrize("levels", [17, 256])
def test_scaled_pixels(levels):
    pixels = np.arange(levels).astype(np.uint8).reshape(-1, 1, 1)
    image = train.scale_pixels(levels=levels)({"image": pixels}, None)["image"]
    assert image.dtype == np.float32
    expected = np.linspace(-1, 1, levels)
    np.testing.assert_allclose(image.ravel(), expected, rtol=0, atol=1e-7)
    assert (image.min(), image.max()) == (-1, 1)


def test_flips_and_crops():
    def cut(pair, rng):
        return train.random_crop(3)(train.random_flip()(pair, rng), rng)

    source = [{"image": IMAGE, "label": 7}] * 400
    batch = next(train.pipeline(source, 400, seed=0, transforms=[cut]))
    assert set(batch["label"]) == {7}
    places = {}
    for mirrored, image in enumerate([IMAGE, IMAGE[:, ::-1]]):
        for top in range(3):
            for left in range(2):
                crop = image[top : top + 3, left : left + 3]
                places[mirrored, top, left] = (batch["image"] == crop).all((1, 2, 3))
    counts = np.array([found.sum() for found in places.values()])
    assert counts.sum() == 400
    # Chi-squared with 11 degrees of freedom: 31.3 is passed once in a thousand times.
    assert ((counts - 400 / 12) ** 2 / (400 / 12)).sum() < 31.3


@pytest.mark.parametrize(
    ("transform", "image", "message"),
    [
        (train.scale_pixels(), IMAGE / 255, "integer pixels in"),
        (train.scale_pixels(levels=17), IMAGE, r"in \[0, 17\); they are uint8"),
        (train.random_crop(5), IMAGE, "at least 5 pixels high and wide; it is 5 by 4"),
        (train.random_flip(), IMAGE[0], r"an image \[H, W, C\]; its shape is \[4, 3\]"),
        (train.random_flip("picture"), IMAGE, "name must be one of"),
    ],
)
def test_images_that_cannot_be_transformed(transform, image, message):
    with pytest.raises(ValueError, match=message):
        transform({"image": image}, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: train.scale_pixels(levels=1), "levels must be at least 2; it is 1"),
        (lambda: train.random_crop(0), "size must be at least 1; it is 0"),
    ],
)
def test_settings_of_transforms(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("threads", [0, 4])
def test_a_transform_cannot_end_the_data(threads):
    def transform(example, rng):
        raise StopIteration

    source = train.array_source({"x": np.arange(8)})
    batches = train.pipeline(source, 4, seed=0, transforms=[transform], threads=threads)
    with pytest.raises(RuntimeError, match="StopIteration"):
        next(batches)


def test_token_ids_do_not_wrap_around():
    windows = train.token_windows(np.array([1, 2**31]), 1)
    assert windows[0]["tokens"].tolist() == [1]
    for refused in (
        lambda: windows[1],
        lambda: train.pack_documents([[2**40]], 4),
    ):
        with pytest.raises(ValueError, match="must be within int32"):
            refused()
