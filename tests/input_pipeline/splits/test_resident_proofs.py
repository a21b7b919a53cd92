"""A resident split of 100,000 images equals NumPy byte for byte. Its randomness, and the time of a resume."""

import numpy as np
import pytest
import tensorflow as tf

from input_pipeline.common.batches import Shard, without_autotune
from input_pipeline.config import DataConfig
from input_pipeline.sources import open_source
from input_pipeline.splits import open_split, resident
from tests.input_pipeline.splits.test_resident import assert_uniform, choices_of, take

COUNT, SIZE, PADDING, BATCH = 100_000, 16, 2, 625


@pytest.fixture(scope="module")
def many():
    """100,000 images: row + 1, column + 1 and noise; the label is the image's index."""
    images = np.empty((COUNT, SIZE, SIZE, 3), np.uint8)
    images[..., 0] = np.arange(1, SIZE + 1)[:, None]
    images[..., 1] = np.arange(1, SIZE + 1)
    images[..., 2] = np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE), np.uint8)
    return resident.ResidentSplit(images, np.arange(COUNT, dtype=np.int32))


@pytest.fixture(scope="module")
def epoch(many):
    """All batches of the first epoch."""
    return take(many.training_batches(11, 0, BATCH, ("crop", "flip")), COUNT // BATCH)


@pytest.fixture(scope="module")
def choices(epoch):
    """(top, left, mirrored), [COUNT] each, read from the images."""
    return [np.concatenate(of) for of in zip(*(choices_of(batch["image"].astype(int)) for batch in epoch), strict=True)]


def test_100_000_images_equal_numpy_byte_for_byte(many, epoch):
    """An error for one offset, one row or beyond some index would show only on a few of many images."""
    seen = 0
    for batch in epoch:
        top, left, mirrored = choices_of(batch["image"].astype(int))
        expected = np.zeros_like(batch["image"])
        source = many.images[batch["label"]]
        for y in range(SIZE):
            for x in range(SIZE):
                row, column = y + top - PADDING, np.where(mirrored, SIZE - 1 - x, x) + left - PADDING
                inside = (row >= 0) & (row < SIZE) & (column >= 0) & (column < SIZE)
                expected[inside, y, x] = source[inside, row[inside], column[inside]]
        np.testing.assert_array_equal(batch["image"], expected)
        seen += len(expected)
    assert seen == COUNT


def test_an_epoch_of_100_000_is_a_permutation(epoch):
    """If an example were left out or came twice, it would not be an epoch."""
    labels = np.concatenate([batch["label"] for batch in epoch])
    np.testing.assert_array_equal(np.sort(labels), np.arange(COUNT))
    # The place of an image in the epoch is independent of its index: ten places by ten origins.
    assert_uniform(np.bincount(np.arange(COUNT) // 10_000 * 10 + labels // 10_000, minlength=100))


def test_offsets_and_flips_are_uniform(choices):
    """If windows preferred a corner, or flips a side, it would be another augmentation."""
    top, left, mirrored = choices
    assert {0, 2 * PADDING} <= set(top) & set(left)
    for values, kinds in ((top, 5), (left, 5), (mirrored.astype(int), 2)):
        assert_uniform(np.bincount(values, minlength=kinds))


def test_offsets_and_flips_are_independent(choices, epoch):
    """If one draw were used for two choices, most windows would never come."""
    top, left, mirrored = choices
    assert_uniform(np.bincount((top * 5 + left) * 2 + mirrored, minlength=50))
    joint = (top * 5 + left) * 2 + mirrored
    assert_uniform(np.bincount(joint[1:] * 50 + joint[:-1], minlength=2500))  # also pairs with the image before
    assert_uniform(np.bincount(joint[BATCH:] * 50 + joint[:-BATCH], minlength=2500))  # and with the batch before
    label = np.concatenate([batch["label"] for batch in epoch])
    assert_uniform(np.bincount(joint * 10 + label // 10_000, minlength=500))  # and with the index of the image


def test_epochs_choose_anew(many, choices):
    """If the windows were the same in each epoch, it would not be augmentation."""
    plans = [resident.plan_epoch(11, number, COUNT, PADDING, True) for number in range(2)]
    np.testing.assert_array_equal(plans[0].top, choices[0])
    joint = [np.empty(COUNT, int) for _ in plans]
    for values, plan in zip(joint, plans, strict=True):
        values[plan.order] = (plan.top * 5 + plan.left) * 2 + plan.mirrored
    assert_uniform(np.bincount(joint[0] * 50 + joint[1], minlength=2500))  # pairs of the same image in both epochs


@pytest.mark.parametrize("step", [0, 159, 160, 1_000_000, 10**12])
def test_a_resume_draws_what_it_needs_and_no_more(many, monkeypatch, step):
    """If a resume repeated all earlier steps, it would take hours at the end of a long run."""
    drawn, read, plan = [], [], resident.plan_epoch
    monkeypatch.setattr(resident, "plan_epoch", lambda seed, epoch, *rest: drawn.append(epoch) or plan(seed, epoch, *rest))
    following = resident.Choices.of
    monkeypatch.setattr(resident.Choices, "of", lambda self, examples: read.append(examples[0]) or following(self, examples))
    batch = take(many.training_batches(11, step, BATCH, ("crop", "flip"), Shard()), 1)[0]
    first = step * BATCH
    assert set(drawn) <= {first // COUNT, first // COUNT + 1}  # the next epoch is drawn if batches are prepared ahead
    assert len(drawn) <= 3
    assert min(read) == first
    assert len(read) <= 2 * (2 * resident.PARALLEL_CHUNKS + 2)  # made, ready or handed out; each may reach the next epoch
    expected = plan(11, first // COUNT, COUNT, PADDING, True).order[first % COUNT : first % COUNT + BATCH]
    np.testing.assert_array_equal(batch["label"], expected)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", ["memory", "stream"])
def test_decoding_has_threads_of_its_own(data_dir, monkeypatch, kind, threads):
    """In TensorFlow's own threads, decoding would delay the operations of the step."""
    from input_pipeline.images import loading
    from input_pipeline.splits import stream as streaming

    made = []

    def watched(dataset, *rest):
        made.append(without_autotune(dataset, *rest))
        return made[-1]

    monkeypatch.setattr(loading, "without_autotune", watched)
    monkeypatch.setattr(streaming, "without_autotune", watched)
    config = DataConfig(data_dir=str(data_dir), input=kind, decode_threads=threads, cache_dir="")
    split = open_split(config, open_source(config), "test[:40]", "test_split", log=lambda line: None)
    if kind == "stream":
        split.pixel_statistics()
        split.training_batches(0, 0, 8, ())
        split.evaluation_batches(8)
    assert made
    assert all(dataset.options().threading.private_threadpool_size == threads for dataset in made)


def test_by_default_there_is_a_thread_for_each_core(data_dir, monkeypatch):
    """tf.data would take 0 to mean no threads of its own."""
    from input_pipeline.splits import stream as streaming

    monkeypatch.setattr(streaming, "CORES", 5)
    config = DataConfig(data_dir=str(data_dir), input="stream")
    split = open_split(config, open_source(config), "test[:40]", "test_split", log=lambda line: None)
    batches = split.training_batches(0, 0, 8, ())
    assert batches.options().threading.private_threadpool_size == 5
    assert isinstance(batches, tf.data.Dataset)
