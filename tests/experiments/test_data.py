"""Data sets against what was written to disk, and batches against their definition."""

import numpy as np
import pytest

from experiments import data
from tests.experiments.files import RANDOM, write_cifar10, write_folder, write_mnist


def scaled(pixels: np.ndarray, levels: int = 256) -> np.ndarray:
    return (2 * pixels.astype(np.float64) / (levels - 1) - 1).astype(np.float32)


def check(dataset: data.Dataset) -> None:
    for split in (dataset.train, dataset.test):
        assert split.images.dtype == np.float32
        assert split.images.ndim == 4
        assert split.images.min() >= -1
        assert split.images.max() <= 1
        assert split.labels.dtype == np.int32
        assert split.labels.shape == split.images.shape[:1]
        assert split.labels.min() >= 0
        assert split.labels.max() < dataset.num_classes


def test_digits_are_the_fixed_split_of_the_wheel() -> None:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(1797)
    digits = data.load("digits")
    check(digits)
    assert (digits.num_classes, digits.levels) == (10, 17)
    expected = pixels[order].reshape(-1, 8, 8, 1) / 8 - 1
    np.testing.assert_array_equal(digits.train.images, expected[:1400])
    np.testing.assert_array_equal(digits.test.images, expected[1400:])
    np.testing.assert_array_equal(digits.train.labels, labels[order][:1400])
    np.testing.assert_array_equal(digits.test.labels, labels[order][1400:])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("inside", [".", "mnist"])
def test_mnist_reads_what_was_written(tmp_path, packed, inside) -> None:
    train, train_labels, test, test_labels = write_mnist(
        tmp_path / inside, packed=packed
    )
    mnist = data.load("mnist", tmp_path)
    check(mnist)
    assert (mnist.num_classes, mnist.levels) == (10, 256)
    np.testing.assert_allclose(
        mnist.train.images, scaled(train)[..., None], rtol=0, atol=1e-7
    )
    np.testing.assert_allclose(
        mnist.test.images, scaled(test)[..., None], rtol=0, atol=1e-7
    )
    np.testing.assert_array_equal(mnist.train.labels, train_labels)
    np.testing.assert_array_equal(mnist.test.labels, test_labels)


@pytest.mark.parametrize("inside", [".", "cifar-10-batches-bin"])
def test_cifar10_reads_what_was_written(tmp_path, inside) -> None:
    images, labels = write_cifar10(tmp_path / inside)
    cifar = data.load("cifar10", str(tmp_path))
    check(cifar)
    assert (cifar.num_classes, cifar.levels) == (10, 256)
    expected = scaled(images).reshape(-1, 32, 32, 3)
    np.testing.assert_allclose(cifar.train.images, expected[:15], rtol=0, atol=1e-7)
    np.testing.assert_allclose(cifar.test.images, expected[15:], rtol=0, atol=1e-7)
    np.testing.assert_array_equal(cifar.train.labels, labels[:5].reshape(-1))
    np.testing.assert_array_equal(cifar.test.labels, labels[5])


def test_directory_comes_from_the_environment(tmp_path, monkeypatch) -> None:
    write_mnist(tmp_path / "mnist")
    monkeypatch.setenv(data.DIRECTORY_VARIABLE, str(tmp_path))
    assert len(data.load("mnist").train.images) == 12
    assert len(data.load("mnist", "").train.images) == 12


def test_mnist_files_as_published(mnist_directory) -> None:
    mnist = data.load("mnist", mnist_directory)
    check(mnist)
    assert mnist.train.images.shape == (60_000, 28, 28, 1)
    assert mnist.test.images.shape == (10_000, 28, 28, 1)
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(mnist.train.labels).tolist() == counts
    mean = (mnist.train.images.astype(np.float64).mean() + 1) / 2
    np.testing.assert_allclose(mean, 0.1307, atol=5e-5)


def test_cifar10_files_as_published(cifar10_directory) -> None:
    cifar = data.load("cifar10", cifar10_directory)
    check(cifar)
    assert cifar.train.images.shape == (50_000, 32, 32, 3)
    assert cifar.test.images.shape == (10_000, 32, 32, 3)
    assert np.bincount(cifar.train.labels).tolist() == [5000] * 10
    assert np.bincount(cifar.test.labels).tolist() == [1000] * 10
    mean = cifar.train.images.mean(axis=(0, 1, 2), dtype=np.float64) / 2 + 0.5
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=5e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_folder_has_a_class_for_each_sub_folder(tmp_path, channels) -> None:
    write_folder(tmp_path, {"cat": 11, "ant": 9})
    (tmp_path / ".cache").mkdir()
    images = data.load("folder", tmp_path, size=8, channels=channels)
    check(images)
    assert images.num_classes == 2
    assert images.train.images.shape == (18, 8, 8, channels)
    assert images.test.images.shape == (2, 8, 8, channels)
    labels = np.concatenate([images.train.labels, images.test.labels])
    assert np.bincount(labels).tolist() == [9, 11]  # alphabetical: ant, cat
    if channels == 3:
        ants = images.train.images[images.train.labels == 0]
        expected = scaled(np.array([40, 10, 255]))  # ant was written second
        np.testing.assert_allclose(
            ants, np.broadcast_to(expected, ants.shape), atol=1e-7
        )


def test_folder_with_its_own_test_split(tmp_path) -> None:
    write_folder(tmp_path / "train", {"a": 3, "b": 4})
    write_folder(tmp_path / "test", {"b": 2})
    images = data.load("folder", tmp_path, size=4)
    check(images)
    assert np.bincount(images.train.labels).tolist() == [3, 4]
    assert images.test.labels.tolist() == [1, 1]
    assert images.num_classes == 2


@pytest.mark.parametrize("shape", [(30, 5, 4), (30, 5, 4, 3)])
def test_npz_holds_out_a_tenth(tmp_path, shape) -> None:
    pixels = RANDOM.randint(0, 256, shape).astype(np.uint8)
    labels = np.arange(30) % 4
    np.savez(tmp_path / "set.npz", images=pixels, labels=labels)
    loaded = data.load("npz", tmp_path / "set.npz")
    check(loaded)
    assert loaded.num_classes == 4
    order = np.random.RandomState(0).permutation(30)
    expected = scaled(pixels).reshape(30, 5, 4, -1)[order]
    np.testing.assert_allclose(loaded.train.images, expected[:27], rtol=0, atol=1e-7)
    np.testing.assert_allclose(loaded.test.images, expected[27:], rtol=0, atol=1e-7)
    np.testing.assert_array_equal(loaded.test.labels, labels[order][27:])


def test_npz_with_its_own_test_split(tmp_path) -> None:
    pixels = RANDOM.randint(0, 256, (7, 2, 2, 1)).astype(np.uint8)
    labels = np.arange(7)
    np.savez(
        tmp_path / "set.npz",
        images=pixels[:5],
        labels=labels[:5],
        test_images=pixels[5:],
        test_labels=labels[5:],
    )
    loaded = data.load("npz", tmp_path / "set.npz")
    check(loaded)
    assert loaded.train.labels.tolist() == [0, 1, 2, 3, 4]
    assert loaded.test.labels.tolist() == [5, 6]
    assert loaded.num_classes == 7


@pytest.mark.parametrize(
    ("name", "shape"),
    [("synthetic_mnist", (28, 28, 1)), ("synthetic_cifar10", (32, 32, 3))],
)
def test_synthetic_images_tell_their_class(name, shape) -> None:
    made = data.load(name)
    check(made)
    assert made.train.images.shape[1:] == shape
    assert set(made.train.labels) == set(range(10))
    # The class shows: the nearest mean image of the training split is the right one.
    means = np.stack(
        [made.train.images[made.train.labels == k].mean(0) for k in range(10)]
    )
    distance = ((made.test.images[:, None] - means) ** 2).sum(axis=(2, 3, 4))
    np.testing.assert_array_equal(distance.argmin(1), made.test.labels)


def latents(shift: float = 0.0) -> np.ndarray:
    """Return latents [30, 4, 4, 2] whose moments are not those of a standard normal."""
    return (shift + 5 * RANDOM.randn(30, 4, 4, 2)).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shift", [0.0, 20.0])
def test_latents_get_unit_variance(tmp_path, shift, dtype) -> None:
    z = latents(shift).astype(dtype)
    labels = np.arange(30) % 7
    np.savez(tmp_path / "z.npz", latents=z, labels=labels)
    loaded = data.load("latents", tmp_path / "z.npz")
    assert (loaded.num_classes, loaded.levels) == (7, 0)
    order = np.random.RandomState(0).permutation(30)
    train, test = z[order[:27]], z[order[27:]]
    np.testing.assert_allclose(loaded.scale, 1 / train.std(dtype=float), rtol=1e-5)
    for split, rows in ((loaded.train, train), (loaded.test, test)):
        assert split.images.dtype == np.float32
        assert split.labels.dtype == np.int32
        np.testing.assert_allclose(split.images, rows * loaded.scale, rtol=1e-3)
    np.testing.assert_array_equal(loaded.train.labels, labels[order[:27]])
    np.testing.assert_allclose(loaded.train.images.std(dtype=float), 1, rtol=1e-5)


def test_latents_with_a_given_scale_and_test_split(tmp_path) -> None:
    train, test = latents(), latents()[:3]
    arrays = dict(latents=train, labels=np.arange(30), test_latents=test)
    np.savez(tmp_path / "z.npz", **arrays, test_labels=np.arange(3))
    loaded = data.load("latents", tmp_path / "z.npz", scale=0.25)
    assert loaded.scale == 0.25
    np.testing.assert_array_equal(loaded.train.images, train / 4)
    np.testing.assert_array_equal(loaded.test.images, test / 4)
    assert loaded.test.labels.tolist() == [0, 1, 2]


def test_synthetic_latents_have_the_shape_of_a_real_encoder() -> None:
    made = data.load("synthetic_latents")
    assert made.train.images.shape[1:] == made.test.images.shape[1:] == (32, 32, 4)
    assert made.num_classes == 1000
    assert set(made.test.labels) <= set(made.train.labels) < set(range(1000))
    np.testing.assert_allclose(made.train.images.std(dtype=float), 1, rtol=1e-5)


def test_two_moons_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import make_moons

    moons = data.load("two_moons")
    assert (moons.levels, moons.num_classes) == (0, 1)
    assert moons.train.images.shape == (200_000, 2)
    assert moons.test.images.shape == (20_000, 2)
    assert moons.train.labels.shape == (200_000,)
    theirs = make_moons(200_000, noise=0.1, random_state=0)[0]
    np.testing.assert_allclose(moons.train.images.mean(0), theirs.mean(0), atol=0.01)
    covariance = np.cov(moons.train.images.T)
    np.testing.assert_allclose(covariance, np.cov(theirs.T), atol=0.01)


def test_patches_have_the_density_of_one_gaussian_that_is_known() -> None:
    patches = data.load("patches")
    train, test = patches.train.images, patches.test.images
    assert (train.shape, test.shape) == ((262_920, 63), (4240, 63))
    assert (patches.levels, train.dtype) == (0, np.float32)
    # The last pixel is minus the sum of the others.
    assert np.abs(np.append(train[0], -train[0].sum())).max() <= 1
    x = train[::9].astype(np.float64)
    root = np.linalg.cholesky(np.cov(x.T))
    z = np.linalg.solve(root, (test - x.mean(0)).T)
    nats = -0.5 * (z**2).sum(0) - np.log(np.diag(root)).sum()
    # 91.80 by another program, on other patches of the same photographs: 0.9 apart.
    assert abs((nats - 63 / 2 * np.log(2 * np.pi)).mean() - 91.8) < 1


def test_vectors_are_not_flipped_and_come_without_a_directory() -> None:
    moons = data.load("two_moons")
    with pytest.raises(ValueError, match="flip must be False for two_moons"):
        data.batches(moons, 4, seed=0, flip=True)
    with pytest.raises(ValueError, match="scale must be 0 for two_moons, got 2"):
        data.load("two_moons", scale=2.0)
    assert data.batches(moons, 4, seed=0)(0)["image"].shape == (4, 2)


def test_the_other_split_of_the_digits_holds_out_360() -> None:
    digits, other = data.load("digits"), data.load("digits_360")
    check(other)
    assert (len(other.train.labels), len(other.test.labels)) == (1437, 360)
    joined = [np.concatenate([d.train.images, d.test.images]) for d in (digits, other)]
    np.testing.assert_array_equal(*joined)


def numbered(count: int) -> data.Dataset:
    labels = np.arange(count, dtype=np.int32)
    columns = np.stack([labels, labels + 0.5], 1).astype(np.float32)
    split = data.Split(columns.reshape(count, 1, 2, 1), labels)
    return data.Dataset("numbered", split, split, count, 256)


@pytest.mark.parametrize(("count", "size"), [(12, 4), (10, 4), (7, 7), (3, 8), (5, 1)])
def test_batches_pass_every_example_once_an_epoch(count, size) -> None:
    batch = data.batches(numbered(count), size, seed=3)
    steps = [batch(step) for step in range(4 * count)]
    for b in steps:
        assert b["label"].shape == (size,)
        np.testing.assert_array_equal(b["image"][:, 0, 0, 0], b["label"])
    stream = np.concatenate([b["label"] for b in steps]).reshape(-1, count)
    np.testing.assert_array_equal(
        np.sort(stream), np.tile(np.arange(count), (4 * size, 1))
    )
    if count > 3:
        assert (stream[0] != stream[1]).any()  # another order each epoch


def test_batches_are_the_same_whoever_asks_and_when() -> None:
    first = data.batches(numbered(50), 8, seed=1, flip=True)
    forward = [first(step) for step in range(40)]
    second = data.batches(numbered(50), 8, seed=1, flip=True)
    for step in (39, 0, 12, 7, 38, 6):
        for name in ("image", "label"):
            np.testing.assert_array_equal(second(step)[name], forward[step][name])
    other = data.batches(numbered(50), 8, seed=2)
    assert (other(0)["label"] != forward[0]["label"]).any()


def test_flips_mirror_about_half_and_leave_the_data_set_alone() -> None:
    dataset = numbered(400)
    before = dataset.train.images.copy()
    batch = data.batches(dataset, 400, seed=0, flip=True)(0)
    left, right = batch["image"][:, 0, 0, 0], batch["image"][:, 0, 1, 0]
    mirrored = left == batch["label"] + 0.5
    np.testing.assert_array_equal(left, batch["label"] + 0.5 * mirrored)
    np.testing.assert_array_equal(right, batch["label"] + 0.5 * ~mirrored)
    assert 150 < mirrored.sum() < 250
    np.testing.assert_array_equal(dataset.train.images, before)


@pytest.mark.parametrize("processes", [2, 3, 6])
def test_rows_are_those_of_the_batch(processes) -> None:
    order = RANDOM.permutation(6).reshape(processes, -1)
    settings = dict(seed=4, flip=True, dequantize=True)
    alone = data.batches(numbered(10), 6, **settings)
    shards = [data.batches(numbered(10), 6, **settings, rows=rows) for rows in order]
    for step in (0, 1, 7):
        parts = [shard(step) for shard in shards]
        for name, whole in alone(step).items():
            joined = np.concatenate([part[name] for part in parts])
            expected = whole[order.ravel()]
            np.testing.assert_array_equal(joined, expected, strict=True)


def test_batches_refuse_what_they_cannot_do() -> None:
    dataset = numbered(4)
    for rows in ([], [2, 3], [-1]):
        with pytest.raises(ValueError, match=r"rows must be in \[0, 3\), got"):
            data.batches(dataset, 3, seed=0, rows=np.array(rows, int))
    with pytest.raises(ValueError, match="dequantize must be False for numbered"):
        data.batches(dataset._replace(levels=0), 4, seed=0, dequantize=True)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        data.batches(dataset, 0, seed=0)
    with pytest.raises(ValueError, match="seed must be in"):
        data.batches(dataset, 2, seed=-1)
    with pytest.raises(ValueError, match="step must be at least 0, got -1"):
        data.batches(dataset, 2, seed=0)(-1)
    with pytest.raises(ValueError, match="must have training images"):
        data.batches(numbered(0), 2, seed=0)
