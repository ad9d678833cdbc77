"""How attention reads beyond the length that it was trained on, as one table.

    python -m experiments.extrapolation
    python -m experiments.extrapolation --steps=200 --encodings rotary,yarn

Small causal transformers predict the bytes of Python's own sources from at most 128
bytes before them. Then they read 1024, with the encoding of positions that they were
trained with or, without more training, with another one of the same parameters:

- `rotary` is RoPE (arXiv:2104.09864); `interpolated`, `ntk` and `yarn`
  (arXiv:2306.15595, 2309.00071) slow its rotations for 8 times the length;
- `rerope` and `leaky rerope` let no distance, or hardly any, grow beyond 64;
- `+ log-n` sharpens the scores of queries beyond the training length;
- `alibi` (arXiv:2108.12409), `hwfa` (windows in all layers but one) and `none` are
  trained with what they are.

The perplexity of a length L is that of all bytes up to the L-th, over windows of the
held-out files, one in ten. The working directory gets `table.md`, `results.json` and
`extrapolation.png`. The first command took 20 minutes on two CPU cores that other work
shared and printed, with Python 3.11, jax 0.10.2, seed 0:

| encoding       | trained with |    128 |    256 |    512 |   1024 |
|----------------|--------------|-------:|-------:|-------:|-------:|
| rotary         | rotary       |  5.184 |  6.748 | 11.271 | 16.571 |
| rotary + log-n | rotary       |  5.184 |  6.708 | 11.012 | 15.567 |
| interpolated   | rotary       | 18.927 | 18.609 | 18.706 | 18.951 |
| ntk            | rotary       |  5.941 |  5.765 |  6.856 | 12.274 |
| yarn           | rotary       |  6.895 |  6.866 |  7.170 |  7.448 |
| rerope         | rotary       |  5.190 |  4.950 |  4.869 |  5.102 |
| leaky rerope   | rotary       |  5.187 |  4.935 |  4.790 |  5.609 |
| rerope + log-n | rotary       |  5.190 |  4.945 |  4.801 |  4.784 |
| alibi          | alibi        |  7.757 |  7.407 |  7.270 |  7.208 |
| hwfa           | hwfa         |  5.197 |  4.928 |  4.792 |  4.767 |
| none           | none         |  9.616 |  9.614 |  9.938 | 10.341 |

The order is that of the papers: RoPE fails at once, NTK later, YaRN hardly; ReRoPE and
HWFA gain from what is further away, and log-n helps where much is seen. Interpolation
needs training at the new length, which its paper gives it. Leaky ReRoPE (k = 8) fails
at the end, where its distances, 64 + (r - 64) / 8, pass those of training. ALiBi gets
better with length, as it should, but learns this text worse in 600 steps than a model
of 2 heads with RoPE does; its paper has more heads and steps.
"""

import argparse
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments._cli import one_line_errors, say
from experiments._rows import write_rows
from genlib import attention as attn
from genlib import nn, train
from genlib.types import Array, Key

TRAIN_LENGTH, LENGTH = 128, 1024
FACTOR = LENGTH / TRAIN_LENGTH
WINDOW = TRAIN_LENGTH // 2  # of ReRoPE
SIZES: dict[str, Any] = dict(features=64, depth=4, num_heads=2)
BATCH = 16
MISSED = ("test", "tests", "idlelib", "lib2to3", "site-packages", "pydoc_data")

Layers = Any  # as the `encodings` of `nn.Transformer`


class Encoding(NamedTuple):
    """Hold what is done about positions: while training, and while reading on."""

    trained: str
    layers: Layers


def _rotary(make: Callable[..., attn.Frequencies], *args: Any) -> attn.Encoding:
    return attn.rotary(make(SIZES["features"] // SIZES["num_heads"], *args))


ROPE = attn.rope_frequencies(SIZES["features"] // SIZES["num_heads"])
ROTARY, RERO = attn.rotary(ROPE), attn.rerope(ROPE, WINDOW)
ENCODINGS = {
    "rotary": Encoding("rotary", ROTARY),
    "rotary + log-n": Encoding("rotary", attn.log_n(ROTARY, TRAIN_LENGTH)),
    "interpolated": Encoding("rotary", _rotary(attn.linear_frequencies, FACTOR)),
    "ntk": Encoding("rotary", _rotary(attn.ntk_frequencies, FACTOR)),
    "yarn": Encoding("rotary", _rotary(attn.yarn_frequencies, FACTOR, TRAIN_LENGTH)),
    "rerope": Encoding("rotary", RERO),
    "leaky rerope": Encoding("rotary", attn.rerope(ROPE, WINDOW, leak=FACTOR)),
    "rerope + log-n": Encoding("rotary", attn.log_n(RERO, TRAIN_LENGTH)),
    "alibi": Encoding("alibi", attn.biased(attn.alibi(SIZES["num_heads"]))),
    "hwfa": Encoding("hwfa", attn.hwfa(SIZES["depth"], ROPE, TRAIN_LENGTH)),
    "none": Encoding("none", attn.no_positions()),
}


def sources() -> tuple[np.ndarray, np.ndarray]:
    """Return the bytes of Python's own modules, for training and held out."""
    library = Path(sysconfig.get_path("stdlib"))
    files = sorted(
        file
        for file in library.rglob("*.py")
        if not any(part in MISSED for part in file.relative_to(library).parts)
    )
    read = lambda files: np.frombuffer(
        b"".join(file.read_bytes() for file in files), np.uint8
    )
    return read(f for i, f in enumerate(files) if i % 10), read(files[::10])


def model(layers: Layers, seed: int = 0) -> nnx.Module:
    """Return a transformer over bytes."""
    return nn.Transformer(256, **SIZES, encodings=layers, rngs=nnx.Rngs(seed))


def nats(logits: Array, tokens: Array) -> Array:
    """Return the cross-entropy of each byte but the first, [B, T - 1]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])


def fit(key: Key, layers: Layers, tokens: np.ndarray, steps: int) -> Any:
    """Train on windows of the training length, and return the averaged parameters."""
    params, apply = nn.from_nnx(model(layers))

    def loss_fn(params: Any, batch: Array, key: Key) -> tuple[Array, int, dict]:
        loss = nats(apply(params, batch[:, :-1]), batch)
        return loss.sum(), loss.size, {}

    schedule = optax.warmup_cosine_decay_schedule(0.0, 4e-3, steps // 10, steps)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))
    step = train.make_step(loss_fn, tx)
    text = jnp.asarray(tokens)
    draw = lambda key: jax.random.randint(key, (BATCH,), 0, len(text) - TRAIN_LENGTH)

    @jax.jit
    def run(state: train.State, keys: Key) -> tuple[train.State, Array]:
        def body(state: train.State, key: Key) -> tuple[train.State, Array]:
            rows = draw(key)[:, None] + jnp.arange(TRAIN_LENGTH + 1)[None]
            state, metrics = step(state, text[rows].astype(jnp.int32))
            return state, metrics["loss"]

        return jax.lax.scan(body, state, keys)

    key_run, key_data = jax.random.split(key)
    state, losses = run(
        train.init(key_run, params, tx), jax.random.split(key_data, steps)
    )
    say(f"  {float(losses[-steps // 10 :].mean()):.3f} nats a byte in training")
    return state.params


def read(params: Any, layers: Layers, windows: np.ndarray) -> np.ndarray:
    """Return the nats of each place in windows of bytes, their mean over windows."""
    apply = nn.from_nnx(model(layers))[1]
    call = jax.jit(lambda rows: nats(apply(params, rows[:, :-1]), rows).sum(0))
    parts = np.split(windows, len(windows) // 8)
    return np.stack([call(jnp.asarray(part)) for part in parts]).sum(0) / len(windows)


def picture(curves: dict[str, np.ndarray], path: Path) -> Path:
    """Draw the nats of each place, averaged over 32 places."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    for number, (name, curve) in enumerate(curves.items()):
        mean = curve[: len(curve) // 32 * 32].reshape(-1, 32).mean(1)
        style = ("-", "--")[number >= 10]
        axis.plot(32 * np.arange(len(mean)) + 16, mean, style, label=name)
    axis.axvline(TRAIN_LENGTH, color="0.6", linewidth=1)
    axis.set(xlabel="place in the window", ylabel="nats a byte", ylim=(1.0, 4.0))
    axis.legend(fontsize=8, ncols=2)
    figure.savefig(path, dpi=130)
    return path


def compare(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Train what must be trained, read with every encoding, and write what came out."""
    names = given.encodings.split(",") if given.encodings else list(ENCODINGS)
    if unknown := set(names) - set(ENCODINGS):
        raise ValueError(
            f"encodings must be of {', '.join(ENCODINGS)}; got {sorted(unknown)}"
        )
    if given.steps < 10 or given.windows < 8 or given.windows % 8:
        raise ValueError(
            "steps must be at least 10 and windows a multiple of 8, got "
            f"{given.steps} and {given.windows}"
        )
    tokens, held_out = sources()
    starts = np.linspace(0, len(held_out) - LENGTH - 1, given.windows).astype(int)
    windows = held_out[starts[:, None] + np.arange(LENGTH + 1)].astype(np.int32)
    say(f"{len(tokens)} bytes to train on, {windows[:, 1:].size} held out")
    trained, curves, rows = {}, {}, []
    for name in names:
        begun = time.monotonic()
        encoding = ENCODINGS[name]
        if encoding.trained not in trained:
            say(f"training with {encoding.trained}")
            layers = ENCODINGS[encoding.trained].layers
            key = jax.random.key(given.seed)
            trained[encoding.trained] = fit(key, layers, tokens, given.steps)
        curves[name] = read(trained[encoding.trained], encoding.layers, windows)
        lengths = (TRAIN_LENGTH << i for i in range(4))
        row = {str(n): float(np.exp(curves[name][:n].mean())) for n in lengths}
        rows.append({"encoding": name, "trained with": encoding.trained, **row})
        say(f"{name}: {time.monotonic() - begun:.0f} s")
    given.workdir.mkdir(parents=True, exist_ok=True)
    write_rows(rows, given.workdir, digits=3)
    say(f"wrote {picture(curves, given.workdir / 'extrapolation.png')}")
    return rows


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    line = argparse.ArgumentParser(
        prog="python -m experiments.extrapolation",
        description=str(__doc__).partition("\n")[0],
    )
    add = line.add_argument
    add("--encodings", default="", help="some of the table, with commas between")
    add("--steps", type=int, default=600, help="training steps of each model")
    add("--windows", type=int, default=64, help="that are read, of 1024 bytes")
    add("--seed", type=int, default=0)
    add("--workdir", type=Path, default=Path("runs/extrapolation"))
    add("--traceback", action="store_true", help="show where an error was raised")
    return line


def main(argv: Sequence[str] | None = None) -> None:
    """Do what the arguments say."""
    given = parser().parse_args(argv)
    with one_line_errors(given.traceback):
        compare(given)


if __name__ == "__main__":
    main()
