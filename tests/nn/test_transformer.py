"""The transformer: its parts put together, decoding, packing, devices."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from genlib import attention, nn, train
from genlib.attention import segments, window
from tests.nn.networks import build, equations, filled, jit

V, F, T, CAPACITY = 7, 8, 6, 9
TOKENS = np.random.default_rng(0).integers(0, V, (2, T))
ROTARY = attention.rotary(attention.rope_frequencies(4))
SAME = attention.Encoding(
    *ROTARY[:1], lambda *args, **more: ROTARY.attend(*args, **more)
)


def model(vocabulary=V, depth=2, rngs=None, **kwargs):
    sizes = {"num_heads": 2, "hidden_features": 6, **kwargs}
    return nn.Transformer(vocabulary, F, depth, **sizes, rngs=rngs or nnx.Rngs(0))


def make(**kwargs):
    return functools.partial(model, **kwargs)


def close(result, expected, atol=1e-5):
    np.testing.assert_allclose(result, expected, rtol=0, atol=atol)


MODELS = {
    "tied, rotary": dict(encodings=ROTARY, qk_norm=True, num_kv_heads=1),
    "own logits, learned": dict(tie_embeddings=False, learned_positions=CAPACITY),
    "sinusoids": dict(sinusoidal=True, norm="layer", feedforward="gelu", use_bias=True),
    "vectors": dict(vocabulary=None, causal=False),
    "encoder": dict(logits=False, causal=False, encodings=ROTARY, depth=3),
}


def composed(network, kwargs, tokens):
    """Compute a model from its blocks, taken one by one from the stack."""
    h = tokens
    if network.embedding is not None:
        h = network.embedding[...][tokens]
    if kwargs.get("sinusoidal"):
        waves = attention.sinusoidal_positions(np.arange(T), F)
        h = h * np.sqrt(F) + waves[None]
    if network.positions is not None:
        h = h + network.positions[...][None, :T]
    graphdef, params = nnx.split(network.blocks)
    for layer in range(kwargs.get("depth", 2)):
        block = nnx.merge(graphdef, jax.tree.map(lambda x, i=layer: x[i], params))
        h = block(h)
    h = network.norm(h)
    if kwargs.get("logits", True) and network.embedding is not None:
        own = network.logits is not None
        h = h @ (network.logits if own else network.embedding)[...].T
    return h


@functools.cache
def computed():
    """Return what all models say, and what their blocks do one by one, in float64."""
    with jax.enable_x64(True):
        networks = {
            name: filled(make(**kwargs, param_dtype=jnp.float64))
            for name, kwargs in MODELS.items()
        }
        vectors = np.random.default_rng(1).standard_normal((2, T, F))

        @jit
        def run(tokens, vectors):
            results = {}
            for name, kwargs in MODELS.items():
                x = vectors if name == "vectors" else tokens
                network = networks[name]
                results[name] = network(x), composed(network, kwargs, x)
            return results

        return jax.tree.map(np.asarray, run(jnp.asarray(TOKENS), jnp.asarray(vectors)))


@pytest.mark.parametrize("name", MODELS)
def test_is_its_blocks_one_after_another(name):
    result, expected = computed()[name]
    width = V if "logits" not in MODELS[name] and name != "vectors" else F
    assert (result.shape, result.dtype) == ((2, T, width), np.float64)
    np.testing.assert_allclose(result, expected, rtol=1e-10, atol=1e-10)


def test_remat_and_groups_change_nothing():
    params, plain = build(make(encodings=ROTARY, dropout=0.5))
    _, again = build(make(encodings=ROTARY, dropout=0.5, remat=True))
    _, apart = build(make(encodings=[ROTARY, SAME], dropout=0.5))

    def grouped(params, *args, **kwargs):
        layer = lambda i: jax.tree.map(lambda x: x[i : i + 1], params["blocks"])
        blocks = {"0": layer(0), "1": layer(1)}
        return apart({**params, "blocks": blocks}, *args, **kwargs)

    @jit
    def run(params, key):
        def loss(params, apply):
            return (apply(params, TOKENS, key=key) ** 2).sum()

        gradients = jax.value_and_grad(loss)
        return gradients(params, plain), gradients(params, again), loss(params, grouped)

    first, second, third = run(params, jax.random.key(0))
    chex.assert_trees_all_close(second, first, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(third, first[0], rtol=1e-5)
    assert all(leaf.any() for leaf in jax.tree.leaves(first))


def test_alike_neighbours_are_one_group():
    full = (ROTARY, None)
    near = (ROTARY, window(2))
    network = nnx.eval_shape(make(depth=5, encodings=[near, near, full, near, near]))
    shapes = [stack.attention.qkv.kernel.shape[0] for stack in network.blocks]
    assert shapes == [2, 1, 2]
    alike = nnx.eval_shape(make(depth=5, encodings=[full] * 5))
    assert alike.blocks.attention.qkv.kernel.shape[0] == 5
    # What a program costs to compile does not grow with the number of layers.
    count = lambda depth: len(
        equations(jax.make_jaxpr(lambda: filled(make(depth=depth))(TOKENS))().jaxpr)
    )
    assert count(2) == count(5)


@functools.cache
def decoding():
    """Return logits at once, and in chunks from caches: a stack, and a sequence."""
    layers = attention.hwfa(2, attention.rope_frequencies(4), 4, 2)
    network = filled(make(encodings=layers, sinusoidal=True))

    def fed(caches):
        rows = []
        for part in np.split(TOKENS, [4], 1):
            row, caches = network(part, caches=caches)
            rows.append(row)
        return jnp.concatenate(rows, 1)

    @jit
    def run():
        caches = [
            attention.rolling_cache(2, 2, 2, 4),
            attention.kv_cache(2, CAPACITY, 2, 4),
        ]
        stack = network.init_caches(2, T)
        return network(TOKENS), {"stack": fed(stack), "sequence": fed(caches)}

    return run()


@pytest.mark.parametrize("caches", ["stack", "sequence"])
def test_decoding_equals_the_whole(caches):
    whole, parts = decoding()
    close(parts[caches], whole)


def test_one_program_decodes_all_tokens():
    network = filled(make(learned_positions=CAPACITY))
    params, apply = nn.from_nnx(network)

    @jit
    @chex.assert_max_traces(n=1)
    def step(params, token, caches):
        return apply(params, token, caches=caches)

    valid = np.array([[True] * 3, [False, True, True]])
    after = lambda caches: jit(
        lambda p: apply(p, TOKENS[:, :3], caches=caches, valid=valid)
    )
    _, caches = after(network.init_caches(2, CAPACITY))(params)
    rows = []
    for t in range(3, T):
        row, caches = step(params, TOKENS[:, t : t + 1], caches)
        rows.append(row)
    whole, alone = jit(lambda p: (apply(p, TOKENS), apply(p, TOKENS[1:, 1:])))(params)
    close(jnp.concatenate(rows, 1)[0], whole[0, 3:])
    close(jnp.concatenate(rows, 1)[1], alone[0, 2:])
    assert caches.length.tolist() == [[6, 5]] * 2


def test_packed_documents_do_not_see_each_other():
    network = filled(make(learned_positions=T))
    ids = np.array([[1, 1, 2, 2, 2, 0]] * 2)
    places = np.array([[0, 1, 0, 1, 2, 0]] * 2)

    @jit
    def run():
        # Positions start again, so the order of tokens is said by the segments.
        mask = segments(ids)
        return network(TOKENS, mask=mask, positions=places), [
            network(TOKENS[:, :2]),
            network(TOKENS[:, 2:5]),
        ]

    packed, parts = run()
    close(packed[:, :5], jnp.concatenate(parts, 1))


def test_encoder_and_decoder():
    encoder = filled(make(causal=False, logits=False))
    decoder = filled(make(cross_features=F, condition_features=3))
    given = {"condition": jnp.ones((2, 3)), "context_mask": window(3)}
    source = TOKENS[:, ::-1]

    @jit
    def run():
        context = encoder(source)
        whole = decoder(TOKENS, context=context, positions=np.arange(T), **given)
        made, caches, rows = decoder.keys_values(context), decoder.init_caches(2, T), []
        for part in np.split(TOKENS, [4], 1):
            row, caches = decoder(part, context=made, caches=caches, **given)
            rows.append(row)
        other = {**given, "context_mask": None}
        far = decoder(TOKENS, context=context, positions=np.arange(T), **other)
        return whole, jnp.concatenate(rows, 1), far

    whole, steps, far = run()
    close(steps, whole)
    assert jnp.abs(far - whole).max() > 1e-2


def test_heads_and_hidden_units_on_two_devices():
    params, apply = build(make(num_heads=4, encodings=attention.no_positions()))
    column, row = (None, "fsdp", "tensor"), (None, "tensor", "fsdp")
    rules = [
        (r"blocks/(attention/qkv|feedforward/hidden)/kernel", column),
        (r"blocks/(attention|feedforward)/out/kernel", row),
    ]
    mesh = train.make_mesh(tensor=2, devices=jax.devices("cpu")[:2])
    split = jax.device_put(params, train.param_shardings(params, mesh, rules))
    call = jit(lambda params: apply(params, TOKENS))
    with jax.set_mesh(mesh):
        program = call.lower(split).compile()
    close(program(split), call(params))
    # Whole heads on each device: sums are all that goes between them.
    text = program.as_text()
    assert "all-reduce" in text
    assert "all-gather" not in text
    assert "collective-permute" not in text


def test_dtypes():
    def call(**kwargs):
        dtype = lambda tokens: model(**kwargs)(tokens)
        return jax.eval_shape(dtype, TOKENS).dtype

    assert call(dtype=jnp.bfloat16) == jnp.float32
    assert call(dtype=jnp.bfloat16, logits=False) == jnp.bfloat16
    assert call(param_dtype=jnp.bfloat16, logits=False) == jnp.bfloat16
    # Wide inputs beside the tokens widen the computation, as they do in one block.
    narrow = make(param_dtype=jnp.bfloat16, condition_features=3, logits=False)
    about = jnp.ones((2, 3))
    wide = jax.eval_shape(lambda: narrow()(TOKENS, condition=about))
    assert wide.dtype == jnp.float32
    narrow = make(param_dtype=jnp.bfloat16, cross_features=3, logits=False)
    wide = jax.eval_shape(lambda: narrow()(TOKENS, context=about[:, None]))
    assert wide.dtype == jnp.float32
    network = nnx.eval_shape(make(dtype=jnp.bfloat16, num_kv_heads=1))
    caches = jax.eval_shape(lambda: network.init_caches(3, 5))
    assert (caches.k.shape, caches.k.dtype) == ((2, 3, 5, 1, 4), jnp.bfloat16)


def test_unknown_tokens_and_places_are_nan():
    network = filled(make(learned_positions=T))
    tokens = jnp.asarray(TOKENS).at[0, 5].set(V).at[1, 4].set(-1)
    places = np.array([[0, 1, 2, 3, 4, 5]] * 2)
    far = jnp.asarray(places).at[0, 5].set(T).at[1, 5].set(-1)
    bad, away = jit(
        lambda tokens, far: (network(tokens), network(TOKENS, positions=far))
    )(tokens, far)
    rows = np.zeros((2, T), bool)
    rows[0, 5] = rows[1, 4:] = True
    np.testing.assert_array_equal(np.isnan(bad).all(-1), rows)
    np.testing.assert_array_equal(np.isnan(bad).any(-1), rows)
    assert np.isnan(away[:, 5]).all()


MAKING = {
    "depth": (dict(depth=0), "depth must be positive, got 0"),
    "vocabulary": (dict(vocabulary=0), "vocabulary must be positive, got 0"),
    "remat": (dict(remat="some"), "remat must be a bool or one of"),
    "positions": (dict(learned_positions=4, sinusoidal=True), "positions are either"),
    "learned": (dict(learned_positions=0), "learned_positions must be positive"),
    "encodings": (dict(encodings=[ROTARY]), "one for each of 2 layers, got 1"),
    "norm": (dict(norm="none"), "norm must be 'layer' or 'rms'"),
}
CALLS = {
    "rank": ({}, (TOKENS[0],), {}, r"tokens must be integers \[B, T\], got int"),
    "floats": ({}, (TOKENS * 1.0,), {}, r"tokens must be integers \[B, T\], got float"),
    "range": ({}, (TOKENS + 1,), {}, r"tokens must be in 0..6, got 1..7"),
    "vectors": (dict(vocabulary=None), (TOKENS,), {}, "tokens must be floating"),
    "length": (dict(learned_positions=5), (TOKENS,), {}, "positions must be in 0..4"),
    "caches": (dict(causal=False), (TOKENS,), {"caches": ()}, "caches must be None"),
    "layers": ({}, (TOKENS,), {"caches": [None]}, "caches must be one for each of 2"),
}


@pytest.mark.parametrize("name", MAKING)
def test_making_refuses(name):
    kwargs, message = MAKING[name]
    with pytest.raises(ValueError, match=message):
        nnx.eval_shape(make(**kwargs))


@functools.cache
def made(**kwargs):
    return filled(make(**kwargs))


@pytest.mark.parametrize("name", CALLS)
def test_call_refuses(name):
    kwargs, args, options, message = CALLS[name]
    args = [jnp.asarray(arg) for arg in args]
    with pytest.raises(ValueError, match=message):
        made(**kwargs)(*args, **options)


def test_caches_without_room_refuse():
    caches = made().init_caches(2, T - 1)
    with pytest.raises(ValueError, match="append takes at most 5 tokens"):
        made()(jnp.asarray(TOKENS), caches=caches)
    caches = dataclasses.replace(caches, length=caches.length + 2)
    with pytest.raises(ValueError, match=r"room for 5 of each .* got 4 more, \[6 6\]"):
        made()(jnp.asarray(TOKENS[:, :4]), caches=caches)


def test_pages_are_taken_when_tokens_need_them():
    caches = [attention.paged_cache(2, 3, 2, 2, 2, 4) for _ in range(2)]
    _, caches = made()(jnp.asarray(TOKENS[:, :3]), caches=caches)
    with pytest.raises(ValueError, match="room"):
        made()(jnp.asarray(TOKENS[:, :1]), caches=caches)


def test_caches_come_back_in_the_container_they_came_in():
    for kind in (list, tuple):
        caches = kind(attention.kv_cache(2, T, 2, 4) for _ in range(2))
        _, grown = jax.eval_shape(
            lambda caches: make()()(TOKENS, caches=caches), caches
        )
        assert jax.tree.structure(grown) == jax.tree.structure(caches)


def test_keys_of_a_context_need_attention_to_it():
    with pytest.raises(ValueError, match="without cross_features has no keys"):
        made().keys_values(jnp.ones((2, 3, F)))
