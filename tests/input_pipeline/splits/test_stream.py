"""A streaming split of several files: its order, resume, shards and exact evaluation."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow.python.eager import context

from input_pipeline import sources
from input_pipeline.common.batches import Shard
from input_pipeline.config import DataConfig
from input_pipeline.images import decoding as augment
from input_pipeline.splits import resident
from input_pipeline.splits import stream as streaming

COUNT, SIZE = 300, 32
WINDOW, MARGIN = 28, 4  # 8/7 of 28 is 32: no image is scaled


def numbered_image(index):
    """An image whose pixels contain their row, their column and the image's index."""
    image = np.empty((SIZE, SIZE, 3), np.uint8)
    image[..., 0], image[..., 1], image[..., 2] = np.arange(SIZE)[:, None], np.arange(SIZE), index % 256
    return image


class NumberedInTest(tfds.core.GeneratorBasedBuilder):
    """The label of each example is its index."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(num_classes=COUNT),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(COUNT)}

    def _generate_examples(self, count):
        for index in range(count):
            yield index, {"image": numbered_image(index), "label": index}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A Source of 300 examples in seven files."""
    folder = tmp_path_factory.mktemp("numbered")
    NumberedInTest(data_dir=folder).download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=7))
    source = sources.open_source(DataConfig(dataset="numbered_in_test", data_dir=str(folder)))
    assert len(source.files["train"]) == 7
    return source


def stream(source, split="train", size=WINDOW, margin=MARGIN):
    """A StreamingSplit."""
    count = source.num_examples(split, "train_split")
    return streaming.StreamingSplit(source, split, count, size, margin, shuffle_buffer=streaming.SHUFFLE_BUFFER)


def take(dataset, count):
    """The first `count` elements, each {name: array}."""
    return list(dataset.take(count).as_numpy_iterator())


def joined(batches, name):
    """One array of all batches."""
    return np.concatenate([batch[name] for batch in batches])


def labels_of(split, seed=0, epochs=1):
    """The order of the examples, [epochs, n]."""
    batches = take(split.training_batches(seed, 0, split.num_examples, ()), epochs)
    return np.stack([batch["label"] for batch in batches])


def tfds_labels(source, split):
    """The labels that TFDS itself reads, sorted."""
    folder = pathlib.Path(source.files["train"][0][0]).parents[2]
    builder = tfds.builder("numbered_in_test", data_dir=folder)
    return sorted(int(example["label"]) for example in builder.as_dataset(split))


@pytest.fixture(params=[8192, 16], ids=["buffer holds all", "buffer of 16"])
def buffer_size(request, monkeypatch):
    """Shuffle buffers larger and smaller than the split."""
    monkeypatch.setattr(streaming, "SHUFFLE_BUFFER", request.param)
    return request.param


@pytest.mark.parametrize("name", ["train", "train[10%:30%]", "train[:50]+train[240:]", "train[43:44]", "train[-1:]+train[:1]"])
def test_every_epoch_is_a_permutation_of_the_split(source, name, buffer_size):
    split = stream(source, name)
    epochs = labels_of(split, epochs=3)
    expected = tfds_labels(source, name)
    assert len(expected) == split.num_examples
    np.testing.assert_array_equal(np.sort(epochs), [expected] * 3)
    if split.num_examples > 10:
        assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("name", ["train", pytest.param("train[:40]", marks=pytest.mark.slow)], ids=["seven files", "one file"])
def test_the_order_is_a_function_of_seed_and_epoch(source, buffer_size, name):
    split = stream(source, name)
    seeds = (0, 1, 2**31 - 2, 2**31 - 1)
    orders = [labels_of(split, seed, 2) for seed in seeds]
    tf.random.set_seed(1234)  # Dataset.shuffle would mix it in
    try:
        np.testing.assert_array_equal([labels_of(split, seed, 2) for seed in seeds], orders)
    finally:
        context.context()._set_global_seed(None)  # there is no public function for this
    assert len({tuple(order) for order in np.concatenate(orders)}) == 8


def test_the_order_is_well_mixed(source):
    """Each example can come anywhere: over 60 epochs, its mean place is the middle."""
    places = np.argsort(labels_of(stream(source), epochs=60), axis=1)
    deviation = (places.mean(axis=0) - (COUNT - 1) / 2) / (COUNT / np.sqrt(12 * 60))
    assert np.abs(deviation).max() < 5
    assert 0.7 < deviation.std() < 1.3


def test_a_small_buffer_still_mixes_the_files(source, monkeypatch):
    """Each example comes early in one epoch and late in another. The deviation of uniform places would be 87."""
    monkeypatch.setattr(streaming, "SHUFFLE_BUFFER", 16)
    places = np.argsort(labels_of(stream(source), epochs=20), axis=1)
    assert places.std(axis=0).mean() > 60


@pytest.mark.parametrize("step", [1, 2, 3, 4, 11, 25])
def test_a_start_at_any_step_gives_the_same_batches(source, step, buffer_size):
    split = stream(source)  # 96 does not divide 300: batches span epochs
    whole = take(split.training_batches(3, 0, 96, ("crop", "flip")), step + 2)[step:]
    resumed = take(split.training_batches(3, step, 96, ("crop", "flip")), 2)
    for name in ("image", "label"):
        np.testing.assert_array_equal(joined(resumed, name), joined(whole, name))


def test_a_resume_decodes_nothing_of_what_was_seen(source, monkeypatch):
    decoded = []

    def counting(encoded, decode=augment.decode):
        with tf.control_dependencies([tf.numpy_function(lambda _: decoded.append(1) or np.int64(0), [encoded], tf.int64)]):
            return decode(tf.identity(encoded))

    monkeypatch.setattr(augment, "decode", counting)
    monkeypatch.setattr(streaming, "CORES", 2)
    take(stream(source).training_batches(0, 20, 12, ()), 1)  # 240 examples on
    assert 12 <= len(decoded) <= 12 * (2 + streaming.PREFETCHED_BATCHES) + 2


@pytest.mark.parametrize(("pipelines", "local"), [(1, 2), (2, 1), (4, 1), (2, 2)])
@pytest.mark.parametrize("kind", ["training", "evaluation"])
def test_shards_together_equal_one_replica(source, kind, pipelines, local):
    split, replicas = stream(source), pipelines * local

    def batches(**shard):
        if kind == "training":
            return split.training_batches(3, 2, 96, ("crop", "flip"), **shard)
        return split.evaluation_batches(96, **shard)

    whole = take(batches(), 6)
    parts = [take(batches(shard=Shard(first * local, local, replicas)), 6 * local) for first in range(pipelines)]
    for step in range(6):
        pieces = [part[step * local + replica] for part in parts for replica in range(local)]
        for name in whole[step]:
            assert all(len(piece[name]) == 96 // replicas for piece in pieces)
            np.testing.assert_array_equal(joined(pieces, name), whole[step][name])


@pytest.mark.parametrize("batch", [60, 96, 400])
def test_evaluation_shows_each_example_once_and_begins_again(source, batch):
    steps = -(-COUNT // batch)
    two_passes = take(stream(source).evaluation_batches(batch), 2 * steps)
    for one_pass in (two_passes[:steps], two_passes[steps:]):
        weight, labels = joined(one_pass, "weight"), joined(one_pass, "label")
        assert weight.dtype == np.float32
        assert labels.dtype == np.int64
        np.testing.assert_array_equal(weight, np.arange(steps * batch) < COUNT)
        assert sorted(labels[:COUNT]) == list(range(COUNT))
        expected = [numbered_image(label)[2:30, 2:30] for label in labels[:COUNT]]
        np.testing.assert_array_equal(joined(one_pass, "image")[:COUNT], expected)


def test_evaluation_equals_the_resident_one(source):
    held = resident.load(source, "train[:77]", 77, (SIZE, SIZE))
    read = stream(source, "train[:77]", SIZE, 0)
    for expected, batch in zip(take(held.evaluation_batches(20), 9), take(read.evaluation_batches(20), 9), strict=True):
        np.testing.assert_array_equal(batch["weight"], expected["weight"])
        real = batch["weight"] > 0
        for name in ("image", "label"):
            np.testing.assert_array_equal(batch[name][real], expected[name][real])
            assert batch[name].dtype == expected[name].dtype


def test_a_replica_may_have_nothing_but_padding(source):
    last = take(stream(source).evaluation_batches(240, Shard(3, 1, 4)), 2)[1]
    assert last["image"].shape == (60, WINDOW, WINDOW, 3)
    assert not last["weight"].any()


def test_windows_equal_numpy_and_are_uniform(source):
    batches = take(stream(source).training_batches(1, 0, 100, ("crop", "flip")), 60)
    images, labels = joined(batches, "image").astype(int), joined(batches, "label")
    mirrored = images[:, 0, 0, 1] > images[:, 0, 1, 1]
    top, left = images[:, 0, 0, 0], np.where(mirrored, images[:, 0, -1, 1], images[:, 0, 0, 1])
    for image, label, y, x, turned in zip(images, labels, top, left, mirrored, strict=True):
        expected = numbered_image(label)[y : y + WINDOW, x : x + WINDOW]
        assert (image == (expected[:, ::-1] if turned else expected)).all()
    counts = np.bincount((top * 5 + left) * 2 + mirrored, minlength=50)
    assert np.sum((counts - 120) ** 2) / 120 < 49 + 4 * np.sqrt(2 * 49)


def test_without_augmentation_training_shows_the_whole_image(source):
    batch = take(stream(source, size=SIZE, margin=0).training_batches(1, 0, COUNT, ()), 1)[0]
    np.testing.assert_array_equal(batch["image"], [numbered_image(label) for label in batch["label"]])


def test_pixel_statistics(source):
    mean, deviation = stream(source, size=SIZE, margin=0).pixel_statistics()
    images = np.stack([numbered_image(index) for index in range(COUNT)])
    np.testing.assert_allclose(mean, images.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(deviation, images.std(axis=(0, 1, 2), dtype=np.float64), rtol=1e-10)


def test_autotune_is_off(source):
    split = stream(source)
    for dataset in (split.training_batches(0, 0, 7, ()), split.evaluation_batches(7)):
        assert dataset.options().autotune.enabled is False
        assert dataset.options().deterministic is True


def test_a_shortened_file_ends_in_an_error_and_not_in_a_shorter_epoch(source, tmp_path):
    folder = tmp_path / "copy"
    NumberedInTest(data_dir=folder).download_and_prepare()
    copy = sources.open_source(DataConfig(dataset="numbered_in_test", data_dir=str(folder)))
    split = stream(copy)
    file = next(folder.rglob("*.tfrecord*"))
    whole = file.read_bytes()
    length = 8 + 4 + int.from_bytes(whole[:8], "little") + 4
    file.write_bytes(whole[length:])  # without its first record
    for dataset in (split.training_batches(0, 0, 100, ()), split.evaluation_batches(100)):
        with pytest.raises(tf.errors.OpError):
            take(dataset, 4)
