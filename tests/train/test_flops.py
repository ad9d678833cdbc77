"""Counts are exact: against closed forms, and against sums of products of ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.experimental import pallas
from jax.sharding import PartitionSpec
from train import toy

from genlib import nn, train
from genlib.train import flops

ONES = lambda *shape: jnp.ones(shape, jnp.float32)
L, B, D = 5, 4, 16
T, S, N, H = 8, 12, 2, 4


def stack(w, x, *, remat=False):
    """L layers of tanh(h w) under a scan."""
    body = lambda h, w: (jnp.tanh(h @ w), None)
    return jax.lax.scan(jax.checkpoint(body) if remat else body, x, w)[0].sum()


def convolution(strides=(1, 1), padding="SAME", **settings):
    spec = ("NHWC", "HWIO", "NHWC")
    return lambda x, w: jax.lax.conv_general_dilated(
        x, w, strides, padding, dimension_numbers=spec, **settings
    )


# f of ones adds up as many ones as f makes products.
LINEAR = {
    "matrix": (jnp.matmul, (3, 5), (5, 7)),
    "vectors": (jnp.vdot, (9,), (9,)),
    "batched": (lambda x, w: jnp.einsum("bij,bjk->bik", x, w), (2, 3, 4), (2, 4, 5)),
    "two contracted": (
        lambda x, w: jnp.einsum("ijk,kjl->il", x, w),
        (2, 3, 4),
        (4, 3, 5),
    ),
    "vmap": (jax.vmap(jnp.matmul, (0, None)), (6, 2, 3), (3, 2)),
    "ragged": (
        lambda x, w: jax.lax.ragged_dot(x, w, jnp.array([5, 0, 3])),
        (8, 2),
        (3, 2, 6),
    ),
    "valid": (convolution(padding="VALID"), (2, 7, 6, 3), (3, 2, 3, 4)),
    "same": (convolution(), (2, 7, 6, 3), (3, 2, 3, 4)),
    "strided": (convolution((2, 3)), (1, 7, 8, 2), (3, 3, 2, 4)),
    "dilated": (convolution(rhs_dilation=(2, 1)), (1, 7, 6, 2), (3, 3, 2, 4)),
    "cropped": (convolution(padding=((-1, 2), (0, -2))), (1, 7, 6, 1), (3, 3, 1, 2)),
    "depthwise": (convolution(feature_group_count=4), (2, 5, 5, 4), (3, 3, 1, 8)),
    "batch groups": (convolution(batch_group_count=2), (4, 5, 5, 3), (3, 3, 3, 2)),
    "transposed": (
        lambda x, w: jax.lax.conv_transpose(x, w, (2, 2), "SAME"),
        (1, 4, 5, 2),
        (3, 4, 2, 3),
    ),
}


@pytest.mark.parametrize("name", LINEAR)
def test_a_product_counts_its_products_and_its_gradients_twice_as_many(name):
    fn, *shapes = LINEAR[name]
    args = [ONES(*shape) for shape in shapes]
    count = flops(fn, *args)
    assert count == 2 * int(fn(*args).sum())
    cotangent = jnp.ones_like(jax.eval_shape(fn, *args))
    both = lambda cotangent, *args: jax.vjp(fn, *args)[1](cotangent)
    assert flops(both, cotangent, *args) == 3 * count


@pytest.mark.parametrize(("remat", "passes"), [(False, 6), (True, 8)])
def test_a_scan_counts_each_layer_and_remat_its_second_forward_pass(remat, passes):
    step = jax.jit(jax.grad(lambda w, x: stack(w, x, remat=remat), argnums=(0, 1)))
    assert flops(step, ONES(L, D, D), ONES(B, D)) == passes * L * B * D**2
    shapes = [jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((L, D, D), (B, D))]
    assert flops(step, *shapes) == passes * L * B * D**2


def chunked_attention(q, k, v):
    """Softmax attention by chunks of keys, each computed again in the backward pass."""

    @jax.checkpoint
    def body(carry, chunk):
        top, total, out = carry
        logits = jnp.einsum("btnh,bsnh->bnts", q, chunk[0])
        new = jnp.maximum(top, logits.max(-1))
        p, fade = jnp.exp(logits - new[..., None]), jnp.exp(top - new)
        out = out * fade[..., None] + jnp.einsum("bnts,bsnh->bnth", p, chunk[1])
        return (new, total * fade + p.sum(-1), out), None

    cut = lambda x: jnp.moveaxis(x.reshape(B, 4, S // 4, N, H), 1, 0)
    start = jnp.full((B, N, T), -jnp.inf), jnp.zeros((B, N, T)), jnp.zeros((B, N, T, H))
    (_, total, out), _ = jax.lax.scan(body, start, (cut(k), cut(v)))
    return jnp.moveaxis(out / total[..., None], 1, 2)


def test_attention_whole_and_by_chunks():
    q, k = ONES(B, T, N, H), ONES(B, S, N, H)
    whole, once = jax.nn.dot_product_attention, 4 * B * N * T * S * H
    backward = lambda fn: jax.grad(lambda *x: (fn(*x) ** 2).sum(), argnums=(0, 1, 2))
    assert flops(whole, q, k, k) == flops(chunked_attention, q, k, k) == once
    assert flops(backward(whole), q, k, k) == 3 * once
    # Again q k, for the probabilities; the output of a chunk is not needed twice.
    assert flops(backward(chunked_attention), q, k, k) == 3 * once + once // 2


def test_calls_branches_and_derivatives_by_hand():
    x, w = ONES(B, D), ONES(D, D)
    once = 2 * B * D**2
    product = jax.custom_vjp(jnp.matmul)
    product.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, g: (g @ r[1].T, r[0].T @ g))
    assert flops(jax.jit(product), x, w) == once
    assert flops(jax.grad(lambda x: product(x, w).sum()), x) == 3 * once
    tangent = jax.custom_jvp(jnp.matmul)
    tangent.defjvp(lambda p, t: (p[0] @ p[1], t[0] @ p[1] + p[0] @ t[1]))
    assert flops(tangent, x, w) == once
    assert flops(lambda x, w: jax.jvp(tangent, (x, w), (x, w)), x, w) == 3 * once
    branch = lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)
    assert flops(branch, x) == 2 * once
    assert (
        flops(lambda x: jax.lax.fori_loop(0, 7, lambda _, x: x @ w, x), x) == 7 * once
    )
    assert flops(jnp.matmul, x.astype(complex), w.astype(complex)) == 4 * once
    assert flops(lambda x: jnp.tanh(x) * x + x.sum(), x) == 0
    assert flops(lambda *, left, right: left @ right, left=x, right=w) == once


def test_all_devices_together():
    mesh = train.make_mesh(2, fsdp=2, devices=jax.devices()[:4])
    rows = PartitionSpec(("data", "fsdp"))
    x, w = ONES(8, D), ONES(D, D)
    split = jax.shard_map(
        jnp.matmul, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=rows
    )
    once = 2 * 8 * D**2
    assert flops(split, x, w) == once
    partly = jax.shard_map(
        jnp.matmul,
        mesh=mesh,
        in_specs=(PartitionSpec("data"), PartitionSpec()),
        out_specs=PartitionSpec("data"),
        axis_names={"data"},
    )
    assert flops(partly, x, w) == once
    everywhere = jax.shard_map(
        jnp.matmul, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec()
    )
    assert flops(everywhere, x, w) == 4 * once
    assert flops(jax.pmap(lambda x: x @ w), x.reshape(4, 2, D)) == once


def test_a_kernel_counts_once_for_each_point_of_its_grid():
    def kernel(x, w, out):
        out[...] = x[...] @ w[...]

    product = pallas.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((32, D), jnp.float32),
        grid=(4,),
        in_specs=[
            pallas.BlockSpec((8, D), lambda i: (i, 0)),
            pallas.BlockSpec((D, D), lambda i: (0, 0)),
        ],
        out_specs=pallas.BlockSpec((8, D), lambda i: (i, 0)),
        interpret=True,
    )
    assert flops(product, ONES(32, D), ONES(D, D)) == 2 * 32 * D**2


def test_what_cannot_be_known_is_refused():
    x, w = ONES(D, D), ONES(D, D)
    search = lambda step: jax.lax.while_loop(lambda x: x.sum() < 1e6, step, x)
    with pytest.raises(ValueError, match=f"one pass takes {2 * D**3} operations"):
        flops(lambda: search(lambda x: x @ w))
    assert flops(lambda: search(lambda x: 2 * x) @ w) == 2 * D**3
    call = jax.ffi.ffi_call("some_gemm", jax.ShapeDtypeStruct((D, D), jnp.float32))
    with pytest.raises(ValueError, match="library function ffi_call"):
        flops(call, x)


def test_a_train_step_costs_the_same_however_it_is_cut_up():
    tx = optax.adamw(1e-3)
    state = train.init(jax.random.key(0), toy.params(), tx)
    counts = [
        flops(train.make_step(toy.loss_fn, tx, accumulate=n), state, toy.batch(0))
        for n in (1, 4)
    ]
    # The derivative with respect to the inputs is not needed.
    assert counts == [3 * 2 * 32 * (3 * 8 + 8 * 2) - 2 * 32 * 3 * 8] * 2


def test_dit_xl_2_takes_what_its_paper_says():
    """118.64 G multiply-adds at 32x32x4 (arXiv:2212.09748, table 4)."""

    def forward(x, t, labels):
        model = nn.DiT(
            4,
            1152,
            28,
            patch_size=2,
            num_heads=16,
            num_classes=1000,
            out_channels=8,
            rngs=nnx.Rngs(0),
        )
        return model(x, t, labels)

    count = flops(forward, ONES(1, 32, 32, 4), ONES(1), jnp.zeros(1, jnp.int32))
    np.testing.assert_allclose(count / 2, 118.64e9, rtol=5e-4)
