"""Power-function averages, and those that are made after the run."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genlib import train
from tests.train import toy
from tests.train.toy import assert_close, assert_identical

GOLDEN = json.loads((Path(__file__).parent.parent / "golden/ema.json").read_text())
STDS = (0.05, 0.10)
EMAS = tuple(train.power_ema(std) for std in STDS)


def walk(params, batch, key):
    """A loss whose steps (of sgd(1)) move the parameter to the batch."""
    return 0.5 * jnp.square(params - batch).sum(), 1.0, {}


def exponent(std):
    """gamma, from the decay of the second step: 2^-(gamma + 1)."""
    return -math.log2(train.power_ema(std)(1)) - 1


def test_widths_and_decays_of_edm2(x64):
    """Case 14."""
    for std, want in GOLDEN["std_to_exp"].items():
        np.testing.assert_allclose(exponent(float(std)), want, rtol=1e-8)
        traced = jax.jit(lambda std: train.power_ema(std)(1))(float(std))
        np.testing.assert_allclose(-jnp.log2(traced) - 1, want, rtol=1e-8)
    # Time is free of units: t = 1000 in steps of 10 is the hundredth step.
    np.testing.assert_allclose(EMAS[0](99), GOLDEN["beta"], atol=1e-9)
    assert [decay(0).item() for decay in EMAS] == [0.0, 0.0]


def test_decays_in_float32():
    for std, want in GOLDEN["std_to_exp"].items():
        np.testing.assert_allclose(exponent(float(std)), want, rtol=1e-5)
    step = jnp.asarray(10**6, jnp.int32)
    want = math.exp((GOLDEN["std_to_exp"]["0.05"] + 1) * math.log1p(-1 / (10**6 + 1)))
    np.testing.assert_allclose(EMAS[0](step), want, atol=6e-8)


def test_warmup_is_that_of_diffusers():
    for case in GOLDEN["get_decay"]:
        decay = train.warmup_ema(power=case["power"])
        got = [decay(jnp.asarray(step)) for step in case["steps"]]
        np.testing.assert_allclose(got, case["decay"], rtol=1e-6)
    assert train.warmup_ema(0.9)(10**6) == np.float32(0.9)


def test_the_profile_has_the_width(x64):
    """The weights of the steps under tau^gamma: mean and deviation of tau / t."""
    n, tau = 2000, np.arange(1, 2001)
    for std, decay in zip(STDS, EMAS, strict=True):
        decays = np.asarray(decay(np.arange(n)))
        weights = (1 - decays) * np.append(np.cumprod(decays[:0:-1])[::-1], 1.0)
        np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-12)
        mean = (weights * tau).sum() / n
        deviation = math.sqrt((weights * (tau / n - mean) ** 2).sum())
        np.testing.assert_allclose(deviation, std, rtol=1e-3)


def test_coefficients():
    """Case 14: 0.07 from two snapshots of 0.05 and 0.10."""
    steps, stds = [500, 1000, 500, 1000], [0.05, 0.05, 0.10, 0.10]
    got = train.posthoc_coefficients(steps, stds, 1000, 0.07)
    np.testing.assert_allclose(got, GOLDEN["posthoc_coef"], rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(got.sum(), 1.0, rtol=1e-14)
    for i in range(4):  # what is there needs no other
        one = train.posthoc_coefficients(steps, stds, steps[i], stds[i])
        np.testing.assert_allclose(one, np.eye(4)[i], atol=1e-9)


def test_coefficients_minimise_the_distance_of_profiles():
    """Against quadrature of the profiles themselves."""
    steps, stds = np.repeat([200.0, 600.0, 1000.0], 2), np.tile(STDS, 3)
    tau = np.linspace(0.0, 1000.0, 400_001)

    def profile(t, std):
        gamma = exponent(std)
        inside = np.where(tau <= t, tau / t, 0.0)
        return (gamma + 1) / t * inside**gamma

    basis = np.stack([profile(*pair) for pair in zip(steps, stds, strict=True)])
    wanted = profile(800.0, 0.08)
    free = np.linalg.solve(basis @ basis.T, basis @ wanted)
    got = train.posthoc_coefficients(steps, stds, 800.0, 0.08)
    np.testing.assert_allclose(got, free / free.sum(), atol=2e-3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with two averages, and the averages of 0.07 that it could have had."""
    folder, tx = tmp_path_factory.mktemp("run"), optax.sgd(1.0)
    state = train.init(jax.random.key(0), jnp.zeros(3), tx, ema=EMAS)
    step = jax.jit(train.make_step(walk, tx, ema=EMAS))
    direct = train.init(jax.random.key(0), jnp.zeros(3), tx)
    direct_step = jax.jit(train.make_step(walk, tx, ema=train.power_ema(0.07)))
    rng = np.random.default_rng(0)
    targets = np.cumsum(rng.normal(size=(400, 3)), 0).astype(np.float32) / 20
    with train.Checkpointer(folder, keep=None) as checkpointer:
        for index, target in enumerate(targets):
            state, _ = step(state, target)
            direct, _ = direct_step(direct, target)
            if (index + 1) % 40 == 0:
                checkpointer.save(index + 1, state)
    return folder, state, direct, targets


def test_the_averages_of_a_run_are_those_of_the_profile(run):
    _, state, direct, targets = run
    for decay, average in [
        (train.power_ema(0.07), direct.ema),
        *zip(EMAS, state.ema, strict=True),
    ]:
        want = 0.0
        for index, target in enumerate(targets):
            beta = float(decay(index))
            want = beta * want + (1 - beta) * target.astype(np.float64)
        np.testing.assert_allclose(average, want, atol=1e-5)


def test_any_width_after_the_run(run):
    """Ten snapshots of two widths give a third, to a thousandth."""
    folder, state, direct, _ = run
    snapshots = train.read_snapshots(folder, jnp.zeros(3), STDS)
    assert [s.step for s in snapshots] == [*np.repeat(np.arange(40, 401, 40), 2)]
    assert isinstance(snapshots[0].params, np.ndarray)
    assert_identical(jnp.asarray(snapshots[-1].params), state.ema[1])
    got = train.posthoc_ema(snapshots, 0.07)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, direct.ema, atol=1e-3)
    assert np.abs(state.ema[0] - direct.ema).max() > 5e-3
    again = train.posthoc_ema(reversed(snapshots), 0.10, step=240)
    np.testing.assert_allclose(again, snapshots[11].params, atol=1e-5)


def test_a_run_with_averages_resumes_and_samples(run):
    folder, state, _, _ = run
    tx = optax.sgd(1.0)
    like = train.init(jax.random.key(9), jnp.zeros(3), tx, ema=EMAS)
    with train.Checkpointer(folder, keep=None) as checkpointer:
        assert_identical(checkpointer.restore(like).state, state)
    pair = train.restore_params(folder, (jnp.zeros(3),) * 2)
    assert_identical(pair, state.ema)
    with pytest.raises(ValueError, match=r"ema/2 is absent in the checkpoint"):
        train.read_snapshots(folder, jnp.zeros(3), (0.05, 0.1, 0.2))
    with pytest.raises(ValueError, match=r"ema is absent in the checkpoint"):
        train.read_snapshots(folder, jnp.zeros(3), 0.05)


def test_one_average_makes_snapshots_too_and_damage_is_passed_over(tmp_path):
    tx, ema = optax.sgd(1.0), train.power_ema(0.1)
    state = train.init(jax.random.key(0), {"w": jnp.zeros(2)}, tx)
    loss_fn = lambda params, *rest: walk(params["w"], *rest)
    step = jax.jit(train.make_step(loss_fn, tx, ema=ema))
    with train.Checkpointer(tmp_path, keep=None) as checkpointer:
        for index in range(2):
            state, _ = step(state, jnp.full(2, index + 1.0))
            checkpointer.save(index + 1, state)
    for file in (tmp_path / "1").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.warns(UserWarning, match=r"/1 cannot be read"):
        (only,) = train.read_snapshots(tmp_path, {"w": jnp.zeros(2)}, 0.1)
    assert (only.step, only.std) == (2, 0.1)
    assert_identical(jax.tree.map(jnp.asarray, only.params), state.ema)


def test_mixed_averages_on_a_mesh_are_those_of_one_device(key):
    """A constant, a warmed-up and a power-function average beside each other."""
    emas = (0.9, train.warmup_ema(0.99), train.power_ema(0.1))
    tx, mesh = optax.sgd(0.1), train.make_mesh(8, devices=jax.devices("cpu"))
    one = train.init(key, toy.params(), tx, ema=emas)
    many = train.replicate(one, mesh)
    step = train.make_step(toy.loss_fn, tx, ema=emas)
    single, split = jax.jit(step), train.jit_step(step, mesh)
    for index in range(3):
        one, _ = single(one, toy.batch(index))
        many, _ = split(many, train.shard_batch(toy.batch(index), mesh))
    assert_close(many.ema, one.ema)
    alone = train.init(key, toy.params(), tx)
    step = jax.jit(train.make_step(toy.loss_fn, tx, ema=0.9))
    for index in range(3):
        alone, _ = step(alone, toy.batch(index))
    assert_identical(one.ema[0], alone.ema)


def test_leaves_that_are_not_floats_are_the_last(key):
    params = [{"w": jnp.full(1, float(i)), "n": jnp.asarray(i)} for i in range(2)]
    snapshots = [train.Snapshot(10 * i + 10, 0.1, params[i]) for i in range(2)]
    got = train.posthoc_ema(snapshots, 0.12)
    assert got["n"] == 1
    np.testing.assert_allclose(
        got["w"], train.posthoc_coefficients([10, 20], [0.1, 0.1], 20, 0.12)[1:]
    )


def state_with(ema):
    return train.init(jax.random.key(0), jnp.zeros(2), optax.sgd(0.1), ema=ema)


def step_with(ema, held):
    step = train.make_step(walk, optax.sgd(0.1), ema=ema)
    return step(state_with(held), jnp.zeros(2))


SNAPSHOT = train.Snapshot(10, 0.1, jnp.zeros(1))
TABLE = {
    "wide": (lambda: train.power_ema(0.3), r"std must be in .* 0\.3"),
    "narrow": (lambda: train.power_ema(0.0), r"std must be in .* 0\.0"),
    "decay": (lambda: train.warmup_ema(1.0), r"decay must be in \[0, 1\).* 1\.0"),
    "power": (lambda: train.warmup_ema(power=0), r"power must be positive; it is 0"),
    "tuple of decays": (
        lambda: step_with((0.9, 1.0), (1, 1)),
        r"ema must be in .* 1\.0",
    ),
    "too few averages": (lambda: step_with(EMAS, True), r"the tuple given to init"),
    "too many": (lambda: step_with(0.9, EMAS), r"the tuple given to init"),
    "other number": (lambda: step_with(EMAS, EMAS[:1]), r"the tuple given to init"),
    "none": (lambda: train.posthoc_ema([], 0.1), r"at least one; there are none"),
    "twice": (lambda: train.posthoc_ema([SNAPSHOT] * 2, 0.1), r"must differ in step"),
    "later": (
        lambda: train.posthoc_ema([SNAPSHOT], 0.1, step=11),
        r"must not be after the last; they are \[10\.0\] and 11",
    ),
    "step 0": (
        lambda: train.posthoc_coefficients([0, 5], [0.1, 0.1], 5, 0.1),
        r"steps must be positive",
    ),
    "widths": (
        lambda: train.posthoc_coefficients([1, 5], [0.1], 5, 0.1),
        r"one number for each snapshot; their shapes are \(2,\) and \(1,\)",
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_mistake(name):
    run, message = TABLE[name]
    with pytest.raises(ValueError, match=message):
        run()
