"""A resident split equals a naive loop byte for byte. Its order, randomness, shards and exact evaluation."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from input_pipeline import sources
from input_pipeline.common.batches import Shard
from input_pipeline.config import DataConfig
from input_pipeline.splits import resident

SIZE, PADDING = 16, 2  # crop pads by an eighth


@pytest.fixture(scope="module")
def numbered():
    """700 images whose pixels contain their position: row + 1, column + 1 and noise. The label is the image's index."""
    images = np.empty((700, SIZE, SIZE, 3), np.uint8)
    images[..., 0] = np.arange(1, SIZE + 1)[:, None]
    images[..., 1] = np.arange(1, SIZE + 1)
    images[..., 2] = np.random.default_rng(0).integers(0, 256, (700, SIZE, SIZE))
    return resident.ResidentSplit(images, np.arange(700, dtype=np.int32))


def take(dataset, count):
    """The first `count` elements, each {name: array}."""
    return list(dataset.take(count).as_numpy_iterator())


def joined(batches, name):
    """One array of all batches."""
    return np.concatenate([batch[name] for batch in batches])


def choices_of(images):
    """(top, left, mirrored) of windows of `numbered` images, read from their middle pixels."""
    middle = SIZE // 2
    mirrored = images[:, middle, middle, 1] > images[:, middle, middle + 1, 1]
    column = np.where(mirrored, images[:, middle, SIZE - 1 - middle, 1], images[:, middle, middle, 1])
    return images[:, middle, middle, 0] - 1 - middle + PADDING, column - 1 - middle + PADDING, mirrored


def naive_window(image, top, left, mirrored):
    """Pads with zeros, cuts and mirrors, one pixel at a time."""
    window = np.zeros_like(image)
    for y in range(SIZE):
        for x in range(SIZE):
            row, column = y + top - PADDING, x + left - PADDING
            if 0 <= row < SIZE and 0 <= column < SIZE:
                window[y, SIZE - 1 - x if mirrored else x] = image[row, column]
    return window


def assert_uniform(counts):
    """Chi-squared test at four standard deviations of the statistic."""
    expected = np.sum(counts) / len(counts)
    statistic, freedom = np.sum((counts - expected) ** 2) / expected, len(counts) - 1
    assert statistic < freedom + 4 * np.sqrt(2 * freedom)


@pytest.fixture(scope="module")
def augmented(numbered):
    """Batches of 96 over 30 epochs of 700: most epochs end within a batch."""
    return take(numbered.training_batches(7, 0, 96, ("crop", "flip")), 30 * 700 // 96)


def test_every_batch_equals_a_naive_loop(numbered, augmented):
    images, labels = joined(augmented, "image"), joined(augmented, "label")
    assert len(images) > 20_000
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    cut = {}
    for index, (image, label, *choice) in enumerate(zip(images, labels, *choices_of(images.astype(int)), strict=True)):
        key = (label, *choice)
        if key not in cut:
            cut[key] = naive_window(numbered.images[label], *choice)
        assert (image == cut[key]).all(), f"image {index}, choice {key}"


def test_every_epoch_is_another_permutation(augmented):
    labels = joined(augmented, "label")
    epochs = labels[: len(labels) // 700 * 700].reshape(-1, 700)
    assert (np.sort(epochs) == np.arange(700)).all()
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_offsets_and_flips_are_uniform_and_independent(augmented):
    top, left, mirrored = choices_of(joined(augmented, "image").astype(int))
    assert_uniform(np.bincount((top * 5 + left) * 2 + mirrored, minlength=50))
    # Also the pairs of an image and the next one.
    assert_uniform(np.bincount((top[1:] * 5 + top[:-1]), minlength=25))
    assert_uniform(np.bincount(mirrored[1:] * 2 + mirrored[:-1], minlength=4))


def test_the_order_is_uniform(numbered):
    first = [resident.plan_epoch(3, epoch, 10, 0, False).order for epoch in range(5000)]
    for place in range(10):
        assert_uniform(np.bincount([order[place] for order in first], minlength=10))


@pytest.mark.parametrize("augmentations", [(), ("crop",), ("flip",)])
def test_only_what_is_chosen_is_done(numbered, augmentations):
    batch = take(numbered.training_batches(1, 0, 700, augmentations), 1)[0]
    if "crop" not in augmentations:
        whole = numbered.images[batch["label"]]
        same, turned = (batch["image"] == whole), (batch["image"] == whole[:, :, ::-1])
        assert (same.all(axis=(1, 2, 3)) | turned.all(axis=(1, 2, 3))).all()
    _, _, mirrored = choices_of(batch["image"].astype(int))
    assert mirrored.any() == ("flip" in augmentations)


@pytest.mark.parametrize("step", [1, 7, 8, 2000])
def test_a_start_at_any_step_gives_the_same_batches(numbered, step):
    ahead = take(numbered.training_batches(5, step - 1, 96, ("crop", "flip")), 2)[1]
    resumed = take(numbered.training_batches(5, step, 96, ("crop", "flip")), 1)[0]
    np.testing.assert_array_equal(ahead["image"], resumed["image"])
    np.testing.assert_array_equal(ahead["label"], resumed["label"])


def test_a_start_equals_a_run_up_to_there(augmented, numbered):
    resumed = take(numbered.training_batches(7, 100, 96, ("crop", "flip")), 3)
    for name in ("image", "label"):
        np.testing.assert_array_equal(joined(resumed, name), joined(augmented[100:103], name))


def test_seeds_differ_up_to_the_largest(numbered):
    orders = [take(numbered.training_batches(seed, 0, 700, ()), 1)[0]["label"] for seed in (0, 1, 2**31 - 2, 2**31 - 1)]
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize(("pipelines", "local"), [(1, 2), (2, 1), (1, 4), (4, 1), (2, 2)])
@pytest.mark.parametrize("kind", ["training", "evaluation"])
def test_shards_together_equal_one_replica(numbered, kind, pipelines, local):
    replicas = pipelines * local

    def batches(**shard):
        if kind == "training":
            return numbered.training_batches(3, 2, 96, ("crop", "flip"), **shard)
        return numbered.evaluation_batches(96, **shard)

    whole = take(batches(), 10)
    parts = [take(batches(shard=Shard(first * local, local, replicas)), 10 * local) for first in range(pipelines)]
    for step in range(10):
        # Each replica gets contiguous rows of the global batch.
        pieces = [part[step * local + replica] for part in parts for replica in range(local)]
        for name in whole[step]:
            assert all(len(piece[name]) == 96 // replicas for piece in pieces)
            np.testing.assert_array_equal(joined(pieces, name), whole[step][name])


@pytest.mark.parametrize("batch", [70, 96, 1000])
def test_evaluation_shows_each_example_once_and_begins_again(numbered, batch):
    steps = -(-700 // batch)
    two_passes = take(numbered.evaluation_batches(batch), 2 * steps)
    for one_pass in (two_passes[:steps], two_passes[steps:]):
        weight = joined(one_pass, "weight")
        assert weight.dtype == np.float32
        np.testing.assert_array_equal(weight, np.arange(steps * batch) < 700)
        np.testing.assert_array_equal(joined(one_pass, "label")[:700], numbered.labels)
        np.testing.assert_array_equal(joined(one_pass, "image")[:700], numbered.images)


def test_a_replica_may_have_nothing_but_padding(numbered):
    last = take(numbered.evaluation_batches(400, Shard(3, 1, 4)), 2)[1]
    assert last["image"].shape == (100, SIZE, SIZE, 3)
    assert not last["weight"].any()


@pytest.mark.parametrize("augmentations", [(), ("crop", "flip")])
def test_changing_a_batch_leaves_the_table_alone(numbered, augmentations):
    before = numbered.images.copy()
    crop, flip = 4 * ("crop" in augmentations), "flip" in augmentations
    numbered.windows(crop, flip).cut(*resident.Choices(0, 700, crop, augmentations).of(np.arange(700)))[:] = 0
    for dataset in (numbered.training_batches(0, 0, 700, augmentations), numbered.evaluation_batches(700)):
        batch = take(dataset, 1)[0]
        for array in batch.values():
            if array.flags.writeable:
                array[:] = 0
    again = take(numbered.training_batches(0, 0, 700, augmentations), 1)[0]
    assert again["image"].any()
    np.testing.assert_array_equal(numbered.images, before)
    np.testing.assert_array_equal(numbered.labels, np.arange(700))


def test_autotune_is_off(numbered):
    for dataset in (numbered.training_batches(0, 0, 7, ()), numbered.evaluation_batches(7)):
        assert dataset.options().autotune.enabled is False
        assert dataset.options().deterministic is True


def test_pixel_statistics(numbered):
    mean, deviation = numbered.pixel_statistics()
    np.testing.assert_allclose(mean, numbered.images.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(deviation, numbered.images.std(axis=(0, 1, 2), dtype=np.float64), rtol=1e-10)


def test_loading_equals_tfds(data_dir):
    source = sources.open_source(DataConfig(data_dir=str(data_dir)))
    split = resident.load(source, "train[10%:14%]", 200, (32, 32))
    expected = list(tfds.builder("shapes", data_dir=data_dir).as_dataset("train[10%:14%]").as_numpy_iterator())
    np.testing.assert_array_equal(split.images, [example["image"] for example in expected])
    np.testing.assert_array_equal(split.labels, [example["label"] for example in expected])
    assert split.images.dtype == np.uint8
    assert split.labels.dtype == np.int32
    assert split.image_shape == (32, 32, 3)


@pytest.mark.parametrize("size", [16, 48])
def test_loading_at_another_size(data_dir, size):
    source = sources.open_source(DataConfig(data_dir=str(data_dir)))
    whole = resident.load(source, "test[:20]", 20, (32, 32)).images
    split = resident.load(source, "test[:20]", 20, (size, size))
    expected = tf.image.resize(whole, (size, size), antialias=True).numpy()
    assert split.images.shape == (20, size, size, 3)
    np.testing.assert_allclose(split.images, expected, atol=0.51)
