"""The pieces of an experiment, each built from its entries of a config.

| function                                 | what it builds                           |
|------------------------------------------|------------------------------------------|
| `process(config)`                        | path, kind, weight and times of the loss |
| `network(config, shape, num_classes)`    | parameters and a pure `apply`            |
| `lazy_network(...)`                      | the same, not yet initialised            |
| `optimizer(config)`                      | Adam with warm-up and cosine decay       |
| `loss_function(config, apply, classes)`  | the `loss_fn` of `train.make_step`       |
| `training(config, loss_fn, init_params)` | the step, and `key -> State`             |
| `sampler(config, apply, shape, classes)` | a compiled draw of labelled samples      |
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments import flow_map
from experiments._spec import called, part
from genlib import guidance, losses, nn, noise, prediction, samplers, train
from genlib.types import Array, Key

PATHS = ("VPLinear", "Cosine", "Rectified", "VE", "EDM", "SubVP", "LinearVP")
KINDS = ("X0", "EPS", "V", "SCORE", "VELOCITY", "EDM")
WEIGHTS = (
    *("unit", "snr", "edm", "min_snr", "soft_min_snr", "sigmoid", "p2"),
    *("sigma_sqrt", "cosmap", "likelihood"),
)
TIMES = (
    *("uniform", "stratified", "low_discrepancy", "logit_normal", "mode", "beta"),
    *("log_normal_sigma", "log_logistic_sigma", "uniform_log_snr"),
)
NETWORKS = ("MLP", "UNet", "DiT")
SOLVERS = (
    *("ddim", "ddpm", "euler", "heun", "midpoint", "ralston", "adams_bashforth"),
    *("dpm_solver", "dpm_solver_multistep", "dpmpp_2s", "dpmpp_3s", "dpmpp_2m"),
    *("dpmpp_3m", "unipc", "deis", "lms", "pndm", "euler_ancestral", "dpm2"),
    *("dpm2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde"),
    *("dpmpp_3m_sde", "sa_solver", "addim"),
)
LOSSES = ("mean_flow",)  # instead of denoising
GRIDS = (
    *("uniform", "power", "flow_shifted", "uniform_log_snr", "polyexponential"),
    *("karras", "beta"),
)

Config = Any  # a ConfigDict: no type checker knows its entries
Apply = Callable[..., Array]


class Process(NamedTuple):
    """Hold what the network is trained on: a path, a target and how to weigh it."""

    path: noise.Path
    kind: prediction.Prediction
    weight: losses.Weight
    times: losses.TimeSampler


class Sampler(NamedTuple):
    """Hold a draw of samples and what it costs.

    draw: `(key, params, labels [N]) -> [N, H, W, C]`, NumPy in, NumPy out.
    nfe: calls of the denoiser for every sample. Guidance calls the network twice.
    """

    draw: Callable[[Key, Any, np.ndarray], np.ndarray]
    nfe: int


def process(config: Config) -> Process:
    """Build path, kind, weight and times.

    Raises:
      ValueError: if an entry names no part, or settings that it does not have.
    """
    return Process(
        path=part("path", config.path, noise, PATHS),
        kind=part("kind", config.kind, prediction, KINDS),
        weight=part("weight", config.weight, losses, WEIGHTS),
        times=part("times", config.times, losses, TIMES),
    )


def network(
    config: Config, shape: tuple[int, ...], num_classes: int
) -> tuple[Any, Apply]:
    """Build a new network for images of a shape [H, W, C], from `config.seed`.

    Raises:
      ValueError: if `config.model` names no network, or one that cannot be built.
    """
    init, apply = lazy_network(config, shape, num_classes)
    return init(jax.random.key(config.seed)), apply


def lazy_network(
    config: Config, shape: tuple[int, ...], num_classes: int
) -> tuple[Callable[[Key], Any], Apply]:
    """Describe the network that `network` builds: `key -> params`, and `apply`.

    Raises:
      ValueError: as `network`.
    """
    given: dict[str, Any] = {"num_classes": num_classes}
    if config.model.startswith("MLP"):
        given["in_features"] = math.prod(shape)
    else:
        given["in_channels"] = shape[-1]

    def make(rngs: nnx.Rngs) -> nnx.Module:
        module = part("model", config.model, nn, NETWORKS, rngs=rngs, **given)
        if _flow_map_loss(config) is not None:
            rngs = nnx.Rngs(config.seed + 1)
            module.condition = flow_map.TwoTimes(module.condition, rngs=rngs)
        return module

    return nn.lazy(make)


def optimizer(config: Config) -> optax.GradientTransformation:
    """Build AdamW: the rate rises over `warmup` steps and falls to 0 at `steps`."""
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.warmup, max(config.steps, config.warmup + 1)
    )
    return optax.adamw(rate, b2=0.99, weight_decay=config.weight_decay)


def loss_function(config: Config, apply: Apply, num_classes: int) -> train.LossFn:
    """Build the loss of a class-conditional network: `config.loss`, or denoising.

    Some labels become the null class, so that the same network is the unconditional
    model that guidance needs; dropout is on.

    Raises:
      ValueError: if an entry names no part, or one that the loss cannot use.
    """
    path, kind, weight, times = process(config)
    two_times = _flow_map_loss(config)

    def loss_fn(params: Any, batch: Any, key: Key) -> tuple[Array, int, dict]:
        key_labels, key_dropout, key_loss = jax.random.split(key, 3)
        labels = nn.drop_labels(
            key_labels, batch["label"], config.drop_labels, num_classes
        )
        predict = lambda x, t: apply(params, x, t, labels, key_dropout)
        x_0 = batch["image"]
        if two_times is None:
            settings = {"kind": kind, "weight": weight, "times": times}
            loss = losses.denoising(key_loss, predict, path, x_0, **settings)
        else:
            loss = two_times(key_loss, predict, path, x_0, times)
        return loss.sum(), loss.size, {}

    return loss_fn


def training(
    config: Config,
    loss_fn: train.LossFn,
    init_params: Callable[[Key], Any],
    *,
    trainable: Any = None,
    absorb: Any = None,
) -> tuple[train.Step, Callable[[Key], train.State]]:
    """Build the step, and the function of a key that makes the state of a new run.

    Args:
      config: with the entries of the optimizer and of the step.
      loss_fn: as `train.make_step` takes it.
      init_params: `key -> params`.
      trainable: of `train.make_step`.
      absorb: of `train.make_step`.

    Raises:
      ValueError: if a setting is out of range, see `train.make_step`.
    """
    tx, loss_scale = optimizer(config), None
    if config.get("loss_scale") is not None:
        loss_scale = train.LossScale(**config.loss_scale)
    step = train.make_step(
        loss_fn,
        tx,
        ema=config.ema,
        clip_norm=config.clip_norm,
        accumulate=config.accumulate,
        precision=config.get("precision"),
        loss_scale=loss_scale,
        trainable=trainable,
        absorb=absorb,
    )
    return step, lambda key: train.init(
        key, init_params(key), tx, loss_scale=loss_scale, trainable=trainable
    )


def sampler(
    config: Config,
    apply: Apply,
    shape: tuple[int, ...],
    num_classes: int,
    *,
    solver: str | None = None,
    nfe: int | None = None,
    decode: Callable[[np.ndarray], np.ndarray] | None = None,
    **changes: Any,
) -> Sampler:
    """Build a draw of samples, as `config.sampling` says but for the changes.

    Args:
      config: with the entries `sampling.solver`, `grid`, `steps`, `guidance`, `batch`.
      apply: the network.
      shape: of an image, [H, W, C].
      num_classes: classes of the network, without the null class.
      solver: instead of `config.sampling.solver`.
      nfe: take the largest number of steps that costs no more.
      decode: from what the network draws to images, for latents.
      **changes: instead of other entries of `config.sampling`.

    Raises:
      ValueError: if an entry names no part or is out of range, or guidance is asked of
        a network that never saw the null class.
    """
    settings = {**config.sampling, **changes}
    guided = settings["guidance"] != 1
    if guided and config.drop_labels == 0:
        raise ValueError(
            "guidance must be 1 for a network that was trained without drop_labels, "
            f"got {settings['guidance']}"
        )
    if not math.isfinite(settings["guidance"]) or settings["batch"] < 1:
        raise ValueError(
            "guidance must be finite and batch at least 1, got "
            f"{settings['guidance']} and {settings['batch']}"
        )
    path, kind = process(config)[:2]
    is_map = _flow_map_loss(config) is not None
    name = solver or settings["solver"]
    to_next = is_map and name == "flow_map"
    step = samplers.euler()
    if not to_next:
        step = part("solver", called(name), samplers, SOLVERS)
    grid = lambda count: part(
        "grid", called(settings["grid"]), samplers, GRIDS, path=path, steps=count
    )
    cost = lambda count: samplers.nfe(step, path, grid(count))
    steps = settings["steps"]
    if nfe is not None:
        first, both = cost(1), cost(2)  # the last step of Heun is cheaper
        steps = 1 + max(0, (nfe - first) // (both - first))
    times = grid(steps)

    @jax.jit
    def draw(key: Key, params: Any, labels: Array) -> Array:
        key_start, key_steps = jax.random.split(key)
        x = noise.prior(key_start, path, (len(labels), *shape), t=times[0])

        def denoiser(labels: Array):
            predict = lambda x, t: apply(params, x, t, labels)
            if is_map:
                predict = flow_map.velocity(predict, times if to_next else None)
            return prediction.denoiser(predict, path, kind)

        denoise = denoiser(labels)
        if guided:
            null = jnp.full_like(labels, num_classes)
            denoise = guidance.classifier_free(
                denoise, denoiser(null), settings["guidance"]
            )
        noisy = key_steps if step.stochastic else None
        return samplers.sample(step, denoise, path, times, x, noisy)

    return Sampler(_in_batches(draw, settings["batch"], decode), cost(steps))


def _in_batches(
    draw: Callable[[Key, Any, Any], Array],
    batch: int,
    decode: Callable[[np.ndarray], np.ndarray] | None,
) -> Callable[[Key, Any, np.ndarray], np.ndarray]:
    """Return a draw for any number of labels, `batch` at a time, and decoded."""

    def draw_all(key: Key, params: Any, labels: np.ndarray) -> np.ndarray:
        size = min(batch, len(labels))
        count = -(-len(labels) // size)
        rows = np.resize(labels, (count, size))
        images = [
            np.asarray(draw(jax.random.fold_in(key, index), params, row))
            for index, row in enumerate(rows)
        ]
        drawn = np.concatenate(images)[: len(labels)]
        return drawn if decode is None else decode(drawn)

    return draw_all


def _flow_map_loss(config: Config) -> flow_map.Loss | None:
    """Return the loss of a network of two times, None where the config has none."""
    text = config.get("loss", "")
    if not text:
        return None
    loss = part("loss", called(text), flow_map, LOSSES)
    if config.kind != "VELOCITY" or config.weight != "unit":
        raise ValueError(
            'kind and weight must be "VELOCITY" and "unit" for a flow map, got '
            f"{config.kind!r} and {config.weight!r}"
        )
    return loss
