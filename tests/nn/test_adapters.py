"""NNX and Linen modules as parameters and pure functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from genlib import nn
from genlib.nn._layers import drop

X = jnp.array([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]])


class Chain(nnx.Module):
    """Eleven layers: as strings, "10" sorts before "2"."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(11)])

    def __call__(self, x):
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return x


class Tied(nnx.Module):
    def __init__(self):
        self.first = nnx.Linear(3, 3, use_bias=False, rngs=nnx.Rngs(0))
        self.second = self.first

    def __call__(self, x):
        return self.second(self.first(x))


class Constant(nnx.Module):
    def __init__(self):
        self.weight = nnx.Param(jnp.array(2.0))
        self.shift = nnx.Variable(jnp.array(3.0))

    def __call__(self, x):
        return x * self.weight[...] + self.shift[...]


class Counter(nnx.Module):
    def __init__(self, kind):
        self.weight = nnx.Param(jnp.ones(()))
        self.kind = kind
        self.calls = 0 if kind == "attribute" else nnx.Variable(jnp.zeros(()))

    def __call__(self, x):
        if self.kind == "attribute":
            self.calls += 1
        elif self.kind == "variable":
            self.calls[...] = self.calls[...] + 1
        elif self.kind == "parameter":
            self.weight[...] = self.weight[...] + 1
        elif self.kind == "new":
            self.seen = nnx.Variable(x)
        return x


def tree_is_plain(tree):
    if isinstance(tree, jax.Array):
        return True
    return type(tree) is dict and all(
        type(name) is str and tree_is_plain(child) for name, child in tree.items()
    )


@pytest.mark.parametrize("make", [Chain, Tied, Constant])
def test_apply_is_the_module(make):
    module = make()
    params, apply = nn.from_nnx(module)
    assert tree_is_plain(params)
    expected = module(X)
    np.testing.assert_array_equal(apply(params, X), expected)
    np.testing.assert_allclose(jax.jit(apply)(params, X), expected, rtol=1e-5)
    rows = jax.vmap(lambda x: apply(params, x))(X)
    np.testing.assert_allclose(rows, expected, rtol=1e-5)


def test_parameters_are_those_given():
    params, apply = nn.from_nnx(Constant())
    assert params.keys() == {"weight"}
    params = {"weight": jnp.array(5.0)}
    np.testing.assert_array_equal(apply(params, X), 5 * X + 3)
    with pytest.raises(ValueError, match="params must have the structure"):
        apply({"wrong": params["weight"]}, X)
    with pytest.raises(ValueError, match="params must have the structure"):
        apply({}, X)


def test_shared_parameters_are_one_leaf():
    params, apply = nn.from_nnx(Tied())
    (kernel,) = jax.tree.leaves(params)
    np.testing.assert_allclose(apply(params, X), X @ kernel @ kernel, rtol=1e-6)


def test_ensemble_is_a_vmap_over_parameters():
    params, apply = nn.from_nnx(Chain())
    other = jax.tree.map(lambda leaf: 2 * leaf, params)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), params, other)
    both = jax.vmap(apply, in_axes=(0, None))(stacked, X)
    np.testing.assert_allclose(both[0], apply(params, X), rtol=1e-5)
    np.testing.assert_allclose(both[1], apply(other, X), rtol=1e-5)


def test_gradient_is_that_of_the_formula():
    params, apply = nn.from_nnx(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    grads = jax.grad(lambda params: apply(params, X).sum())(params)
    expected = X.sum(0)[:, None].repeat(2, 1)
    np.testing.assert_array_equal(grads["kernel"], expected)
    np.testing.assert_array_equal(grads["bias"], [2.0, 2.0])


def test_donated_parameters_leave_the_module_alone():
    module = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    expected = module(X)
    params, _ = nn.from_nnx(module)
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(params)]
    assert len(set(buffers)) == len(buffers)
    double = jax.jit(lambda tree: jax.tree.map(lambda a: 2 * a, tree), donate_argnums=0)
    double(params)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(params))
    np.testing.assert_array_equal(module(X), expected)


def test_from_nnx_works_on_shapes_alone():
    params = jax.eval_shape(lambda: nn.from_nnx(Chain())[0])
    assert params["layers"]["10"]["kernel"].shape == (3, 3)


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("variable", "calls"),
        ("parameter", "weight"),
        ("new", "seen"),
        ("attribute", "an attribute"),
    ],
)
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_a_lost_update_is_refused(kind, named, transform):
    params, apply = nn.from_nnx(Counter(kind))
    with pytest.raises(ValueError, match=f"must not update itself.*{named}"):
        transform(apply)(params, X)


def test_no_update_is_no_error():
    params, apply = nn.from_nnx(Counter("none"))
    np.testing.assert_array_equal(apply(params, X), X)


@pytest.mark.parametrize(
    "make",
    [
        lambda rngs: nnx.BatchNorm(3, rngs=rngs),
        lambda rngs: nnx.Dropout(0.5, rngs=rngs),
    ],
    ids=["BatchNorm", "Dropout"],
)
def test_layers_with_state_run_in_eval_mode_only(make):
    module = make(nnx.Rngs(0))
    params, apply = nn.from_nnx(module)
    with pytest.raises(ValueError, match="must not update itself"):
        apply(params, X)
    module.eval()
    params, apply = nn.from_nnx(module)
    np.testing.assert_array_equal(apply(params, X), module(X))


def test_from_linen():
    module = linen.Sequential([linen.Dense(4), jnp.tanh, linen.Dense(2)])
    params, apply = nn.from_linen(module, jax.random.key(0), X)
    assert tree_is_plain(params)
    expected = module.apply({"params": params}, X)
    np.testing.assert_array_equal(apply(params, X), expected)
    np.testing.assert_allclose(jax.jit(apply)(params, X), expected, rtol=1e-6)


def test_from_linen_passes_keys():
    module = linen.Dropout(0.5)
    params, apply = nn.from_linen(module, jax.random.key(0), X, deterministic=True)
    assert params == {}
    np.testing.assert_array_equal(apply(params, X, deterministic=True), X)
    dropped = apply(params, X, deterministic=False, rngs={"dropout": jax.random.key(1)})
    assert jnp.isin(dropped, jnp.concatenate([2 * X.ravel(), jnp.zeros(1)])).all()


def test_from_linen_refuses_to_lose_an_update():
    module = linen.BatchNorm()
    params, apply = nn.from_linen(
        module, jax.random.key(0), X, use_running_average=True
    )
    assert params.keys() == {"scale", "bias"}
    np.testing.assert_allclose(apply(params, X, use_running_average=True), X, rtol=1e-4)
    with pytest.raises(ValueError, match="module must not update its state"):
        apply(params, X, use_running_average=False)


def test_from_linen_unboxes():
    init = linen.with_partitioning(linen.initializers.ones, ("in", "out"))
    module = linen.Dense(2, kernel_init=init)
    params, apply = nn.from_linen(module, jax.random.key(0), X)
    assert tree_is_plain(params)
    np.testing.assert_allclose(apply(params, X)[:, 0], X.sum(1), rtol=1e-6)


def test_drop_zeroes_and_scales():
    x = jnp.linspace(1, 2, 100_000)
    result = np.asarray(drop(jax.random.key(0), x, 0.25))
    kept = result != 0
    np.testing.assert_array_equal(result[kept], np.asarray(x / 0.75)[kept])
    # Five standard deviations of the binomial count.
    assert abs(kept.mean() - 0.75) < 5 * np.sqrt(0.75 * 0.25 / x.size)
    assert drop(None, x, 0.25) is x
    assert drop(jax.random.key(0), x, 0.0) is x


def test_lazy_parameters_are_those_of_the_module():
    make = lambda rngs: nn.MLP(2, 4, 1, num_classes=3, rngs=rngs)
    init, apply = nn.lazy(make)
    key = jax.random.key(3)
    params, eager = nn.from_nnx(make(nnx.Rngs(key)))
    jax.tree.map(np.testing.assert_array_equal, init(key), params)
    x = jnp.ones((5, 2))
    np.testing.assert_array_equal(apply(params, x, 0.5), eager(params, x, 0.5))


def test_lazy_keeps_variables_that_are_no_parameters():
    class Counted(nnx.Module):
        def __init__(self, rngs):
            self.table = nnx.Variable(jnp.arange(3.0))
            self.w = nnx.Param(jax.random.normal(rngs.params(), (3,)))

        def __call__(self, x):
            return x * self.w[...] + self.table[...]

    init, apply = nn.lazy(Counted)
    params = init(jax.random.key(0))
    assert params.keys() == {"w"}
    np.testing.assert_array_equal(apply(params, jnp.zeros(3)), np.arange(3))
