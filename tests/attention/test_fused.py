"""cuDNN's attention: what it is asked for, what it is not, and that this is enough."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.registry import jit_once

from genlib.attention import (
    _fused,
    attention,
    block_causal,
    causal,
    dense,
    prefix,
    window,
)

LENGTH = 8
HALF = jnp.bfloat16


def inputs(dtype=HALF, length=LENGTH, features=8):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(2, length, heads, features) for heads in (4, 2, 2)]
    return [jax.random.normal(*x, dtype) for x in zip(keys, shapes, strict=True)]


def calls():
    table = jax.random.bernoulli(jax.random.key(1), 0.5, (2, 2, LENGTH, LENGTH))
    bias = jax.random.normal(jax.random.key(2), (1, 4, LENGTH, LENGTH), HALF)
    return {
        "all": {},
        "scale": dict(scale=0.3),
        "causal": dict(mask=causal()),
        "window": dict(mask=causal() & window(5) & window(3)),
        "lengths": dict(mask=prefix(np.array([0, 5]))),
        "causal lengths": dict(mask=causal() & prefix(np.array([4, 9]))),
        "table": dict(mask=table.at[0, :, 3].set(False)),
        "two tables": dict(mask=dense(table) & dense(table[:1, :1]) & causal()),
        "bias": dict(mask=causal(), bias=bias.at[:, :, 2].set(-jnp.inf)),
    }


@pytest.fixture
def asked(monkeypatch):
    """Let jax.nn compute in XLA, and return what it is asked for."""
    options = []
    real = jax.nn.dot_product_attention

    def instead(q, k, v, *, implementation, **others):
        assert implementation == "cudnn"
        options.append(others)
        return real(q, k, v, implementation="xla", **others)

    monkeypatch.setattr(jax.nn, "dot_product_attention", instead)
    monkeypatch.setattr(_fused, "_capable", lambda: True)
    return options


def outputs_and_gradients(impl, cases, q, k, v):
    """Return outputs, and gradients of what is finite, in every case."""

    def loss(q, k, v, bias, options):
        out = attention(q, k, v, impl=impl, **options, bias=bias)
        wide = out.astype(jnp.float32)
        return (jnp.where(jnp.isnan(wide), 0.0, wide) ** 2).sum(), wide

    results = {}
    for name, options in cases.items():
        rest = {key: value for key, value in options.items() if key != "bias"}
        argnums = (0, 1, 2, 3) if "bias" in options else (0, 1, 2)
        grad = jax.value_and_grad(loss, argnums, has_aux=True)
        (_, out), gradients = grad(q, k, v, options.get("bias"), rest)
        results[name] = out, [g.astype(jnp.float32) for g in gradients]
    return results


def check_against_naive(jit):
    """Where there is a mask, with a query and a value that are not finite."""
    q, k, v = inputs()
    spoilt = q.at[0, 1].set(jnp.inf), k, v.at[1, 6, 0, 0].set(jnp.nan)
    count = 0
    for rows, masked in (((q, k, v), False), (spoilt, True)):
        cases = {name: x for name, x in calls().items() if ("mask" in x) == masked}
        cases.pop("causal", None)  # that of other cases
        cases.pop("all", None)
        expected, found = (
            jit(functools.partial(outputs_and_gradients, impl, cases))(*rows)
            for impl in ("naive", "fused")
        )
        count += sum(int(np.isnan(out).sum()) for out, _ in expected.values())
        for name, (out, gradients) in expected.items():
            np.testing.assert_allclose(found[name][0], out, atol=0.02, err_msg=name)
            for ours, theirs in zip(gradients, found[name][1], strict=True):
                assert np.isfinite(ours).all()
                assert np.abs(ours).max() > 0.1
                np.testing.assert_allclose(theirs, ours, atol=0.05, err_msg=name)
        if masked:
            assert (found["lengths"][0][0] == 0).all()  # a length of 0
            assert (found["bias"][0][:, 2] == 0).all()  # a row of -inf
    assert count > 100


def test_equals_naive(asked):
    check_against_naive(jit_once)
    assert len(asked) == len(calls()) - 2


def test_on_a_gpu():
    if not _fused._capable():
        pytest.skip("there is no NVIDIA GPU of compute capability 8.0")
    check_against_naive(jax.jit)


def test_what_is_asked_for(monkeypatch):
    asked = []
    fake = lambda q, k, v, **options: asked.append(options)
    monkeypatch.setattr(jax.nn, "dot_product_attention", fake)
    monkeypatch.setattr(_fused, "_capable", lambda: True)
    monkeypatch.setattr(_fused, "guarded", lambda call, run: run(*call[:3]))
    q, k, v = inputs()
    cases = {
        **calls(),
        "wide window": dict(mask=window(50) & causal()),
        "last": dict(mask=causal()),
    }
    for name, options in cases.items():
        attention(q[:, -1:] if name == "last" else q, k, v, impl="fused", **options)
    assert all(options.pop("implementation") == "cudnn" for options in asked)
    found = dict(zip(cases, asked, strict=True))
    assert found["all"] == found["last"] == {"scale": 8**-0.5}
    assert found["scale"] == {"scale": 0.3}
    assert found["causal"] == {"scale": 8**-0.5, "is_causal": True}
    assert found["wide window"] == found["causal"]
    # Of a window there the query itself is not counted.
    assert found["window"] == {**found["causal"], "local_window_size": (2, 0)}
    assert found["lengths"]["key_value_seq_lengths"].tolist() == [1, 5]
    assert found["causal lengths"]["key_value_seq_lengths"].tolist() == [4, 8]
    assert found["table"]["mask"].shape == (2, 4, LENGTH, LENGTH)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (dict(dtype=jnp.float32), "it computes in bfloat16 and float16"),
        (dict(features=12), "a multiple of 8"),
        (dict(features=136), "up to 128"),
        (dict(return_lse=True), "its log-sum-exp"),
        (dict(softcap=5.0), "no softcap"),
        (dict(sink=jnp.zeros(4)), "no sink"),
        (dict(mask=window(3)), "window needs causal"),
        (dict(mask=block_causal(2)), "its masks are causal, window, prefix and dense"),
        (dict(mask=causal() | prefix(2)), "its masks are"),
        (dict(mask=~causal()), "its masks are"),
        (
            dict(mask=causal(), q_positions=np.arange(8), kv_positions=np.arange(1, 9)),
            "positions must be",
        ),
        (dict(mask=causal() & window(3) & prefix(4)), "it takes one"),
        (dict(bias=jnp.zeros((1, 1, 8, 8))), "a bias must be a table in bfloat16"),
        (
            dict(mask=np.eye(8, dtype=bool)[None, None], dtype=jnp.float16),
            "tables need bfloat16",
        ),
        (dict(mask=np.eye(7, dtype=bool)[None, None], length=7), "even lengths"),
        (dict(mask=causal(), queries=4), "causal needs as many queries"),
    ],
)
def test_what_it_would_not_do_exactly_is_refused(monkeypatch, options, reason):
    monkeypatch.setattr(_fused, "_capable", lambda: True)
    own = ("dtype", "length", "features")
    q, k, v = inputs(**{name: options.pop(name) for name in own if name in options})
    q = q[:, : options.pop("queries", None)]
    with pytest.raises(ValueError, match=f"fused.*cannot compute this: .*{reason}"):
        attention(q, k, v, impl="fused", **options)


def test_traced_settings_are_refused(monkeypatch):
    monkeypatch.setattr(_fused, "_capable", lambda: True)
    q, k, v = inputs()
    for options in (
        lambda x: dict(scale=x),
        lambda x: dict(mask=causal() & window(x)),
    ):
        run = jax.jit(lambda x, o=options: attention(q, k, v, impl="fused", **o(x)))
        with pytest.raises(ValueError, match="must be known before tracing"):
            run(3)
