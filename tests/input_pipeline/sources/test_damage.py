"""Damage that could be mistaken for something else, or hide it: a record after another, a size, a class, padding."""

import pytest
import tensorflow as tf
from source_files import encoded, picture, write_folder, write_records

from input_pipeline import sources
from input_pipeline.common.errors import SettingError, UnusableError
from input_pipeline.config import DataConfig
from input_pipeline.splits import resident
from input_pipeline.splits import stream as streaming
from train_lib import config as config_lib
from train_lib.cli.failures import explained


def flip(path, records, byte=20):
    """Flips one bit in each of some records of a TFRecord file: in its data or, with byte < 8, in its length."""
    content, position, starts = bytearray(path.read_bytes()), 0, []
    while position < len(content):
        starts.append(position)
        position += 16 + int.from_bytes(content[position : position + 8], "little")
    for record in records:
        content[starts[record] + byte] ^= 1
    path.write_bytes(content)


def open_(folder, limit=0):
    pattern = f"tfrecord:{folder}/*.tfrecord"
    return sources.open_source(DataConfig(dataset=pattern, max_bad_examples=limit))


@pytest.fixture
def records(tmp_path):
    """One file with 30 records of three classes, without class_names.txt."""
    write_records(tmp_path, splits=("train",))
    (tmp_path / "class_names.txt").unlink(missing_ok=True)
    examples = [record for path in sorted(tmp_path.glob("*.tfrecord")) for record in tf.data.TFRecordDataset(str(path))]
    for path in tmp_path.glob("*.tfrecord"):
        path.unlink()
    with tf.io.TFRecordWriter(str(tmp_path / "train.tfrecord")) as writer:
        for record in examples:
            writer.write(record.numpy())
    return tmp_path / "train.tfrecord"


def test_classes_are_counted_behind_a_damaged_record(records):
    """If counting stopped at the damaged record, it would find fewer classes or none."""
    flip(records, [0])
    source = open_(records.parent, 1)
    assert source.class_names == ("0", "1", "2")
    assert resident.load(source, "train", 30, (8, 8)).num_examples == 29


def test_neighbours_that_are_damaged_are_both_skipped(records):
    flip(records, [5, 6])
    source = open_(records.parent, 2)
    assert resident.load(source, "train", 30, (8, 8)).num_examples == 28
    assert list(source.bad.found) == [f"{records} record {number}" for number in (5, 6)]


def test_where_all_records_are_damaged_one_line_says_so(records):
    flip(records, [29])
    source = open_(records.parent, 5)
    with pytest.raises(UnusableError, match=r"every record of train\[29:\] is damaged"):
        resident.load(source, "train[29:]", 1, (8, 8))


def test_a_damaged_length_ends_the_file_and_is_told(records):
    """The checksum of the length is damaged but the length is right, so counting the records does not find it."""
    flip(records, [10], byte=8)
    with pytest.raises(UnusableError, match="record 10: is damaged in its length, and the classes that follow"):
        open_(records.parent, 3)  # otherwise only the classes before it would be counted
    (records.parent / "class_names.txt").write_text("a\nb\nc\n")
    source = open_(records.parent, 3)
    with pytest.raises(UnusableError, match="record 10: is damaged in its length"):
        source.skip_damaged("train")


def test_an_empty_example_is_no_padding(records):
    """Otherwise it would silently be left out of an evaluation."""
    with tf.io.TFRecordWriter(str(records)) as writer:
        for content in (tf.train.Example().SerializeToString(), b""):
            writer.write(content)
    (records.parent / "class_names.txt").write_text("a\nb\n")
    split = streaming.StreamingSplit(open_(records.parent), "train", 2, 8, 0)
    with pytest.raises(tf.errors.InvalidArgumentError):
        next(iter(split.evaluation_batches(2)))


def test_a_size_that_is_refused_is_not_one_that_varies(tmp_path):
    write_folder(tmp_path)
    header = bytearray(encoded(picture(3)))
    header[16:24] = (10**5).to_bytes(4, "big") * 2  # width and height
    (tmp_path / "train" / "owl" / "huge.png").write_bytes(header)
    assert sources.open_source(DataConfig(dataset=f"folder:{tmp_path}")).image_shape == (8, 8, 3)


@pytest.mark.parametrize("split", ["train[:1shard]", "all[:50%]"])
def test_slices_that_only_tfds_knows_are_refused(tmp_path, split):
    source = sources.open_source(DataConfig(dataset=f"folder:{write_folder(tmp_path)}"))
    with pytest.raises(SettingError, match="no such split"):
        source.num_examples(split, "train_split")


def test_what_is_larger_than_the_memory_is_refused(data_dir):
    from input_pipeline.splits import open_split

    config = DataConfig(data_dir=str(data_dir), input="memory", image_size=4096, cache_dir="")
    with pytest.raises(SettingError, match="--input=memory: train takes .* GB, .* are free"):
        open_split(config, sources.open_source(config), "train", "train_split", lambda line: None)


@pytest.mark.parametrize("message", [
    "Failed to decode WebP image.", "Key: label.  Data types don't match.", "Input size should match (header_size + ...)",
    "what no version has said so far [[{{node Iterator::Root::Prefetch}}]]"])
@pytest.mark.parametrize("mode", ["train", "evaluate"])
def test_any_error_of_a_stream_is_looked_into(tmp_path, message, mode):
    """In `evaluate`, this also works if the data has no other split than the evaluated one."""
    write_folder(tmp_path, splits=("test",))
    bad = tmp_path / "test" / "owl" / "011.png"
    bad.write_bytes(bad.read_bytes()[:60])
    names = dict.fromkeys(("train_split", "validation_split"), "test") if mode == "train" else {}
    values = {"dataset": f"folder:{tmp_path}", "input": "stream", "image_size": 32, "mode": mode, "workdir": str(tmp_path)}
    with pytest.raises(UnusableError) as caught, explained(config_lib.from_values(values | names)):
        raise tf.errors.InvalidArgumentError(None, None, message)
    assert str(caught.value).startswith(f"{bad}: is damaged or cut off") and caught.value.exit_code == 3
