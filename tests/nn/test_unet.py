"""The UNet: sizes, attention, groups."""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from genlib import nn
from genlib.nn._unet_block import group_norm
from tests.nn.networks import build, unet


def test_sizes_that_cannot_be_halved_are_refused():
    params, apply = build(functools.partial(unet, multipliers=(1, 1, 1)))
    for size in ((4, 6), (5, 4), (7, 7)):
        match = rf"divisible by 4 for 3 levels.*{size[0]}, {size[1]}, 3"
        with pytest.raises(ValueError, match=match):
            apply(params, jnp.zeros((1, *size, 3)), 0.5)
    x = jnp.zeros((1, 12, 4, 3))
    assert jax.eval_shape(apply, params, x, 0.5).shape == x.shape


@pytest.mark.parametrize(
    ("attention_at", "down", "up"),
    [
        ((), [], []),
        ((4,), ["2"], ["3", "4"]),
        ((8, 2), ["0", "4"], ["0", "1", "6", "7"]),
    ],
)
def test_attention_stands_at_the_chosen_resolutions(attention_at, down, up):
    make = functools.partial(
        unet,
        multipliers=(1, 1, 1),
        image_size=8,
        attention_at=attention_at,
    )
    params = jax.eval_shape(lambda: nn.from_nnx(make())[0])

    def attending(part):
        found = [name for name, block in params[part].items() if "attention" in block]
        return sorted(found, key=int)

    assert (attending("down"), attending("up")) == (down, up)
    assert attending("middle") == ["0"]


def test_out_channels():
    params, apply = build(functools.partial(unet, out_channels=6))
    result = jax.eval_shape(apply, params, jnp.zeros((2, 4, 4, 3)), 0.5)
    assert result.shape == (2, 4, 4, 6)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"multipliers": ()}, r"multipliers must .* got \(\)"),
        ({"blocks": 0}, "blocks must be positive, got 0"),
        ({"image_size": None}, "image_size must be given .* got None"),
        ({"attention_at": (3,)}, r"attention_at must be among .*\[4, 2\], got \[3\]"),
        ({"head_dim": 0}, "head_dim must be positive, got 0"),
        ({"head_dim": 3}, "num_heads must divide the 16 features, got 5"),
    ],
)
def test_bad_setting(settings, match):
    with pytest.raises(ValueError, match=match):
        nnx.eval_shape(lambda: unet(**settings))


@pytest.mark.parametrize("channels", [*range(1, 65), 96, 100, 128, 192, 320, 1152])
def test_groups_divide_the_channels(channels):
    norm = nnx.eval_shape(lambda: group_norm(channels, rngs=nnx.Rngs(0)))
    assert 1 <= norm.num_groups <= 32
    assert channels % norm.num_groups == 0
    if channels % 4 == 0 and channels <= 128:
        assert norm.num_groups == channels // 4
