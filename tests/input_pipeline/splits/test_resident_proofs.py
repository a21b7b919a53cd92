"""The resident path at full size: 100,000 images against NumPy, byte for byte; its randomness; what a resume costs."""

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
    """(top, left, mirrored) [COUNT] each, read off the images."""
    return [np.concatenate(of) for of in zip(*(choices_of(batch["image"].astype(int)) for batch in epoch), strict=True)]


def test_100_000_images_equal_numpy_byte_for_byte(many, epoch):
    """A gather that goes wrong for one offset, one row or beyond some index would show only on a few of many images."""
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
    """An example left out or shown twice would change what an epoch means."""
    labels = np.concatenate([batch["label"] for batch in epoch])
    np.testing.assert_array_equal(np.sort(labels), np.arange(COUNT))
    # Where an image stands tells nothing of where it stood: ten places by ten origins.
    assert_uniform(np.bincount(np.arange(COUNT) // 10_000 * 10 + labels // 10_000, minlength=100))


def test_offsets_and_flips_are_uniform(choices):
    """Windows that favour a corner, or flips that favour a side, would be another augmentation than the one named."""
    top, left, mirrored = choices
    assert {0, 2 * PADDING} <= set(top) & set(left)
    for values, kinds in ((top, 5), (left, 5), (mirrored.astype(int), 2)):
        assert_uniform(np.bincount(values, minlength=kinds))


def test_offsets_and_flips_are_independent(choices, epoch):
    """One draw used for two choices would leave most windows out."""
    top, left, mirrored = choices
    assert_uniform(np.bincount((top * 5 + left) * 2 + mirrored, minlength=50))
    joint = (top * 5 + left) * 2 + mirrored
    assert_uniform(np.bincount(joint[1:] * 50 + joint[:-1], minlength=2500))  # of the image before, too
    assert_uniform(np.bincount(joint[BATCH:] * 50 + joint[:-BATCH], minlength=2500))  # and of the batch before
    label = np.concatenate([batch["label"] for batch in epoch])
    assert_uniform(np.bincount(joint * 10 + label // 10_000, minlength=500))  # and of which image it is


def test_epochs_choose_anew(many, choices):
    """The same windows in each epoch would be no augmentation at all."""
    plans = [resident.plan_epoch(11, number, COUNT, PADDING, True) for number in range(2)]
    np.testing.assert_array_equal(plans[0].top, choices[0])
    joint = [np.empty(COUNT, int) for _ in plans]
    for values, plan in zip(joint, plans, strict=True):
        values[plan.order] = (plan.top * 5 + plan.left) * 2 + plan.mirrored
    assert_uniform(np.bincount(joint[0] * 50 + joint[1], minlength=2500))  # of the same image in both


@pytest.mark.parametrize("step", [0, 159, 160, 1_000_000, 10**12])
def test_a_resume_draws_what_it_needs_and_no_more(many, monkeypatch, step):
    """A resume that goes through what came before takes longer the later it comes: hours, at the end of a long run."""
    drawn, read, plan = [], [], resident.plan_epoch
    monkeypatch.setattr(resident, "plan_epoch", lambda seed, epoch, *rest: drawn.append(epoch) or plan(seed, epoch, *rest))
    following = resident.Choices.of
    monkeypatch.setattr(resident.Choices, "of", lambda self, examples: read.append(examples[0]) or following(self, examples))
    batch = take(many.training_batches(11, step, BATCH, ("crop", "flip"), Shard()), 1)[0]
    first = step * BATCH
    assert set(drawn) <= {first // COUNT, first // COUNT + 1}  # the next one where it is read ahead
    assert len(drawn) <= 3
    assert min(read) == first
    assert len(read) <= 2 * (2 * resident.PARALLEL_CHUNKS + 2)  # at work, ready, given out; each may reach into the next epoch
    expected = plan(11, first // COUNT, COUNT, PADDING, True).order[first % COUNT : first % COUNT + BATCH]
    np.testing.assert_array_equal(batch["label"], expected)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", ["memory", "stream"])
def test_decoding_has_threads_of_its_own(data_dir, monkeypatch, kind, threads):
    """In TensorFlow's own threads, decoding keeps the operations of the step waiting."""
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
    """0 would be read by tf.data as: no threads of its own."""
    from input_pipeline.splits import stream as streaming

    monkeypatch.setattr(streaming, "CORES", 5)
    config = DataConfig(data_dir=str(data_dir), input="stream")
    split = open_split(config, open_source(config), "test[:40]", "test_split", log=lambda line: None)
    batches = split.training_batches(0, 0, 8, ())
    assert batches.options().threading.private_threadpool_size == 5
    assert isinstance(batches, tf.data.Dataset)
