"""Bad examples in a stream are skipped up to the limit, and all others keep their places. One more ends the run."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from source_files import CLASSES, encoded, picture, write_folder, write_records

from input_pipeline import sources, splits
from input_pipeline.common.batches import Shard
from input_pipeline.common.errors import UnusableError
from input_pipeline.config import DataConfig
from input_pipeline.sources.tfrecord import write_tfrecords
from train_lib import config as config_lib
from train_lib.cli.failures import explained

COUNT, BAD = 30, (4, 10, 26)
BATCH = 12  # does not divide 30


def spoil_folder(root):
    """A folder of 30 images, of which three are bad; returns --dataset and the bad files."""
    write_folder(root, count=COUNT)
    found = [next((root / "train").glob(f"*/{index:03}.png")) for index in BAD]
    for path, content in zip(found, (b"?", encoded(picture(1))[:60], encoded(picture(0, (9, 7)))[:-20]), strict=True):
        path.write_bytes(content)
    return f"folder:{root}", [str(path) for path in found]


def spoil_records(root):
    """Three files of ten records: one image cut off, one label out of range, one broken checksum."""
    bad = {4: (encoded(picture(4))[:60], 1), 10: (encoded(picture(10)), 7)}
    files = []
    for number in range(3):
        files.append(root / f"train-{number}.tfrecord")
        with tf.io.TFRecordWriter(str(files[-1])) as writer:
            for index in range(number * 10, number * 10 + 10):
                image, label = bad.get(index, (encoded(picture(index)), index % 3))
                features = {"image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
                            "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label]))}
                writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    content, position = bytearray(files[2].read_bytes()), 0
    for _ in range(26 - 20):
        position += 16 + int.from_bytes(content[position : position + 8], "little")
    content[position + 20] ^= 1
    files[2].write_bytes(content)
    (root / "class_names.txt").write_text("\n".join(CLASSES))
    return f"tfrecord:{root}/*.tfrecord", [f"{files[0]} record 4", f"{files[1]} record 0", f"{files[2]} record 6"]


def open_stream(dataset, limit, split="train"):
    """A Source and one of its splits as a stream of 8 x 8 images."""
    config = DataConfig(dataset=dataset, input="stream", image_size=8, max_bad_examples=limit, augment="crop,flip")
    source = sources.open_source(config)
    return source, splits.open_split(config, source, split, "train_split", log=lambda line: None)


def take(dataset, count):
    return list(dataset.take(count).as_numpy_iterator())


def joined(batches, name):
    return np.concatenate([batch[name] for batch in batches])


@pytest.fixture(scope="module", params=["folder", "tfrecord"])
def spoiled(request, tmp_path_factory):
    """(--dataset, the names of the bad examples, how many records can be read) of each kind."""
    root = tmp_path_factory.mktemp(request.param)
    dataset, bad = (spoil_folder if request.param == "folder" else spoil_records)(root)
    return dataset, bad, COUNT - (request.param == "tfrecord")


def test_the_first_good_example_takes_the_place_of_a_bad_one(spoiled):
    """The others keep their places, so an epoch keeps its number of steps. Each bad example is listed once, with its reason."""
    dataset, bad, readable = spoiled
    source, split = open_stream(dataset, limit=3)
    assert split.num_examples == readable
    epochs = take(split.training_batches(1, 0, readable, ("crop", "flip")), 3)
    seen, labels = (joined(epochs, name).reshape(3, readable, -1) for name in ("image", "label"))
    seen, labels = seen[:, :, 1].astype(int), labels[:, :, 0]  # the second colour of a picture is its index
    records = [int(image[0, 0, 1]) for image in split._pixel_parts()]
    assert sorted(records) == sorted(set(range(COUNT)) - set(BAD))
    for epoch, epoch_labels in zip(seen, labels, strict=True):
        assert sorted(epoch) == sorted([*records, *[records[0]] * (readable - len(records))])
        np.testing.assert_array_equal(epoch_labels, epoch % 3)
    assert len({tuple(epoch) for epoch in seen}) == 3
    assert sorted(source.bad.found) == sorted(bad)
    assert all(why.startswith(("is ", "has the label 7")) for why in source.bad.found.values())


def test_good_data_gives_the_same_batches_with_and_without_a_limit(tmp_path):
    """With a limit, each example is tried separately. That must not change the order or the random draws."""
    dataset = f"tfrecord:{write_records(tmp_path, splits=('train',))}/*.tfrecord"
    strict, tolerant = (open_stream(dataset, limit)[1] for limit in (0, 1))
    for batches in (lambda split: split.training_batches(3, 1, BATCH, ("crop",)), lambda split: split.evaluation_batches(BATCH)):
        for expected, batch in zip(take(batches(strict), 5), take(batches(tolerant), 5), strict=True):
            assert batch.keys() == expected.keys()
            for name in expected:
                np.testing.assert_array_equal(batch[name], expected[name])
    assert batches(strict).element_spec == batches(tolerant).element_spec


@pytest.mark.parametrize("flip", ["flip", "alternating_flip"])
def test_shards_after_a_resume_give_the_same_batches(spoiled, flip):
    """If a bad example were simply skipped, all later ones would move, differently for each number of replicas."""
    split = open_stream(spoiled[0], limit=3)[1]
    whole = take(split.training_batches(3, 0, BATCH, ("crop", flip)), 8)[4:]
    parts = [take(split.training_batches(3, 4, BATCH, ("crop", flip), Shard(replica, 1, 2)), 4) for replica in range(2)]
    for step, batch in enumerate(whole):
        for name in batch:
            np.testing.assert_array_equal(np.concatenate([part[step][name] for part in parts]), batch[name])


def test_a_bad_example_does_not_count_in_an_evaluation(spoiled):
    """If substitutes counted, the accuracy would be that of other data."""
    dataset, bad, readable = spoiled
    source, split = open_stream(dataset, limit=3)
    steps = -(-readable // BATCH)
    two_passes = take(split.evaluation_batches(BATCH), 2 * steps)
    for batches in (two_passes[:steps], two_passes[steps:]):
        weight, images, labels = (joined(batches, name) for name in ("weight", "image", "label"))
        assert weight.sum() == COUNT - len(BAD)
        shown = images[weight > 0, 0, 0, 1].astype(int)
        assert sorted(shown) == sorted(set(range(COUNT)) - set(BAD))
        np.testing.assert_array_equal(labels[weight > 0], shown % 3)
        assert not images[weight == 0].any()
    assert sorted(source.bad.found) == sorted(bad)


def test_statistics_are_those_of_the_good_ones(spoiled):
    """The statistics are measured before training. A bad example must not end the run there."""
    mean, deviation = open_stream(spoiled[0], limit=3)[1].pixel_statistics()
    good = np.stack([picture(index) for index in sorted(set(range(COUNT)) - set(BAD))])
    np.testing.assert_allclose(mean, good.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(deviation, good.std(axis=(0, 1, 2), dtype=np.float64), rtol=1e-10)


def test_one_too_many_ends_the_run_with_its_name(tmp_path):
    """TensorFlow wraps an error that Python raises inside a graph into a page of text."""
    dataset, bad = spoil_folder(tmp_path)
    source, split = open_stream(dataset, limit=2)
    config = config_lib.from_values({"dataset": dataset, "input": "stream", "image_size": 8, "max_bad_examples": 2})
    with pytest.raises(UnusableError) as caught, explained(config):
        take(split.training_batches(0, 0, COUNT, ()), 1)
    message = str(caught.value)
    assert message.partition(": ")[0] in bad and "--max_bad_examples=2, this is number 3" in message and "\n" not in message


def test_where_nothing_is_good_one_line_says_so(tmp_path):
    """There is no substitute for bad examples, and no pixel to average."""
    for path in write_folder(tmp_path, splits=("train",), count=6).rglob("*.png"):
        path.write_bytes(b"?")
    split = open_stream(f"folder:{tmp_path}", limit=9)[1]
    for use in (split.pixel_statistics, lambda: split.training_batches(0, 0, 2, ())):
        with pytest.raises(UnusableError, match="no example that can be decoded"):
            use()


@pytest.mark.parametrize("kind", ["folder", "tfrecord"])
def test_a_split_of_nothing_but_bad_examples_is_told_before_anything_is_evaluated(tmp_path, kind):
    """Otherwise the mean over no example would be a division by zero, after an epoch of training."""
    if kind == "folder":
        write_folder(tmp_path, count=3)
        for path in (tmp_path / "train").glob("*/*.png"):
            path.write_bytes(b"?")
        dataset = f"folder:{tmp_path}"
    else:
        write_tfrecords(tmp_path, [(b"?", 0)] * 3, CLASSES)
        dataset = f"tfrecord:{tmp_path}/*.tfrecord"
    source, split = open_stream(dataset, limit=20)
    with pytest.raises(UnusableError, match="contains no example that can be decoded"):
        split.evaluation_batches(2)


def test_a_broken_checksum_of_a_stream_is_named(tmp_path):
    """TensorFlow's own error does not name the file."""
    dataset, places = spoil_records(tmp_path)
    values = {"dataset": dataset, "input": "stream", "image_size": 8, "train_split": "train", "validation_split": ""}
    with pytest.raises(UnusableError) as error, explained(config_lib.from_values(values)):
        raise tf.errors.DataLossError(None, None, "corrupted record at 123")
    assert str(error.value).startswith(f"{places[2]}: is damaged")


def test_a_record_that_is_no_example_is_named_in_memory_and_in_a_stream(tmp_path):
    """TensorFlow's message contains the record, and if that is no text, Python raises an error of its own."""
    path, = write_tfrecords(tmp_path, [(encoded(picture(index)), index % 3) for index in range(20)], CLASSES)
    records = [*tf.data.TFRecordDataset(str(path)).as_numpy_iterator()]
    records[17] = b"\xff\xfe\x00\x81\xc3"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    values = {"dataset": f"tfrecord:{path}", "image_size": 8, "train_split": "train", "validation_split": "", "test_split": ""}
    for kind in ("memory", "stream"):
        config = config_lib.from_values(values | {"input": kind, "cache_dir": ""})
        with pytest.raises(UnusableError) as caught, explained(config):
            source = sources.open_source(config.data)
            take(splits.open_split(config.data, source, "train", "train_split", lambda line: None).evaluation_batches(4), 5)
        assert str(caught.value).startswith(f"{path} record 17: cannot be read (it is no tf.train.Example)"), kind
    others_wait = SimpleNamespace(is_alone=False)  # so nothing is searched
    with pytest.raises(UnusableError, match="a record of the stream is no tf.train.Example"), explained(config, others_wait):
        take(splits.open_split(config.data, source, "train", "train_split", lambda line: None).evaluation_batches(4), 5)
    source, split = open_stream(values["dataset"], limit=1)
    assert joined(take(split.evaluation_batches(4), 5), "weight").sum() == 19
    assert list(source.bad.found) == [f"{path} record 17"]
