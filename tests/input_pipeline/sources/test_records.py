"""TFRecord files as other programs write them and downloads leave them: shards, features, empty files, names of classes."""

import numpy as np
import pytest
import tensorflow as tf
from source_files import encoded, picture

from input_pipeline import sources
from input_pipeline.common.errors import UnusableError
from input_pipeline.config import DataConfig
from input_pipeline.sources.tfrecord import encoded_examples, write_tfrecords
from input_pipeline.splits import resident


def feature(value):
    """A tf.train.Feature of bytes, a whole number, a decimal number, a list of those, or None for one without a type."""
    values = value if isinstance(value, list) else [value]
    if value is None:
        return tf.train.Feature()
    if isinstance(values[0], bytes):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
    if isinstance(values[0], float):
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def write(path, records):
    """A TFRecord file; a record is a dict of features, or bytes."""
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            if isinstance(record, dict):
                wrapped = tf.train.Features(feature={name: feature(value) for name, value in record.items()})
                record = tf.train.Example(features=wrapped).SerializeToString()
            writer.write(record)
    return path


def usual(count=6, image="image", label="label", first=0, **more):
    return [{image: encoded(picture(index)), label: index % 3 + first, **more} for index in range(count)]


def open_(folder, pattern="*.tfrecord*", limit=0):
    return sources.open_source(DataConfig(dataset=f"tfrecord:{folder}/{pattern}", max_bad_examples=limit))


def fault(folder, pattern="*.tfrecord*", limit=99):
    """The error about files, which never suggests to skip examples."""
    with pytest.raises(UnusableError) as caught:
        open_(folder, pattern, limit)
    message = str(caught.value)
    assert "\n" not in message and "max_bad_examples" not in message and UnusableError.exit_code == 3
    return message


def write_names(folder, text="a\nb\nc\n"):
    (folder / "class_names.txt").write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize(("there", "missing"), [
    (["train-00000-of-00002.tfrecord"], "train-00001-of-00002.tfrecord: is missing; "),
    (["d-train.tfrecord-00001-of-00003"], "d-train.tfrecord-00000-of-00003: is missing, and 1 more of this set of 3 files; "),
    (["train-00000-of-00001.tfrecord", "test-00001-of-00002.tfrecord"], "test-00000-of-00002.tfrecord: is missing; "),
    (["train-0-of-2.tfrecord", "train-1-of-2.tfrecord", "train-00000-of-00002.tfrecord.part"],
     "train-00001-of-00002.tfrecord.part: is missing; "),
    (["train-1-of-3.tfrecord", "train-3-of-3.tfrecord"], "train-2-of-3.tfrecord: is missing; "),
    (["train-0-of-1.tfrecord", "train-0-of-2.tfrecord"], "train-1-of-2.tfrecord: is missing; "),
    (["train-0-of-1.tfrecord", "train-5-of-1.tfrecord"], "train-5-of-1.tfrecord: cannot belong to a set of 1 files"),
])
def test_a_missing_file_of_a_set_is_named(tmp_path, there, missing):
    """A download that stopped would otherwise train on half of the data without a word."""
    for name in there:
        write(tmp_path / name, usual())
    assert fault(tmp_path).startswith(f"{tmp_path}/{missing}")


def test_whole_sets_are_read_and_a_narrow_pattern_is_told(tmp_path, capsys):
    for name in ("train-1-of-2", "train-2-of-2", "train-00000-of-00002", "train-00001-of-00002", "test-0-of-1"):
        write(tmp_path / f"{name}.tfrecord", usual())
    write_names(tmp_path)
    assert open_(tmp_path).split_sizes() == {"train": 24, "test": 6}
    assert "are of two sets with the same name; both are read" in capsys.readouterr().err
    assert open_(tmp_path, "train-00001*").split_sizes() == {"train": 6}
    message = f"the pattern leaves out 1 of 2 files, such as {tmp_path}/train-00000-of-00002.tfrecord\n"
    assert capsys.readouterr().err == message
    assert open_(tmp_path, "train-0*").split_sizes() == {"train": 12} and capsys.readouterr().err == ""


def test_files_that_only_seem_to_name_splits(tmp_path):
    """Otherwise both would be `train`, and the network would be tested on what it was trained on."""
    for name in ("training", "testing"):
        write(tmp_path / f"{name}.tfrecord", usual())
    assert fault(tmp_path).startswith(f"{tmp_path}/testing.tfrecord: its name holds testing, others hold training; ")
    assert open_(tmp_path, "training*").split_sizes() == {"train": 6}


def test_records_of_tf_slim_are_read_as_they_are(tmp_path):
    """Their labels count from 1, and the first name is that of the background. Copying them must not change a byte."""
    records = usual(first=1, image="image/encoded", label="image/class/label", **{"image/format": b"png", "image/height": 8})
    write(tmp_path / "train.tfrecord", [{}, *records])
    assert fault(tmp_path).startswith(f"tfrecord:{tmp_path}/*.tfrecord*: has the labels 1 to 3; ")
    write_names(tmp_path, "background\na\nb\nc\n")
    write(tmp_path / "train.tfrecord", records)
    source = open_(tmp_path)
    assert source.class_names == ("background", "a", "b", "c") and source.image_shape == (8, 8, 3)
    loaded = resident.load(source, "train", 6, (8, 8))
    np.testing.assert_array_equal(loaded.images, [picture(index) for index in range(6)])
    assert loaded.labels.tolist() == [1, 2, 3, 1, 2, 3]
    assert list(encoded_examples(source, "train")) == [(encoded(picture(index)), index % 3 + 1) for index in range(6)]


def test_image_and_label_win_over_the_names_of_tf_slim(tmp_path):
    write(tmp_path / "train.tfrecord", usual(**{"image/encoded": b"?", "image/class/label": 9}))
    assert [label for _, label in encoded_examples(open_(tmp_path), "train")] == [0, 1, 2, 0, 1, 2]


IMAGE = encoded(picture(1))
WRITER = "write the files with input_pipeline.sources.tfrecord.write_tfrecords"


@pytest.mark.parametrize(("record", "words"), [
    ({"image_raw": b"abc", "label": 1}, "has the features image_raw (bytes), label (int64); needed are image (bytes, one enc"),
    ({"image": IMAGE}, "has the features image (bytes); needed are"),
    ({"x": None, "y": [1.0, 2.0]}, "has the features x (empty), y (2 float); needed are"),
    ({"image": IMAGE, "label": b"cat"}, "the feature label as a text (bytes), where the number of one class (one int64)"),
    ({"image": IMAGE, "label": 1.0}, "the feature label as a decimal number (float), where the number"),
    ({"image": IMAGE, "label": [0, 1, 0]}, "the feature label as 3 int64, where the number of one class"),
    ({"image": IMAGE, "label": None}, "the feature label as empty, where"),
    ({"image": [0.5] * 12, "label": 1}, "the feature image as 12 float, where one encoded image (bytes) is needed"),
    ({"image": 7, "label": 1}, "the feature image as a whole number (int64), where one encoded image"),
    ({"image": [IMAGE, IMAGE], "label": 1}, "the feature image as 2 bytes, where one encoded image"),
    ({"image/encoded": IMAGE, "image/class/label": b"cat"}, "the feature image/class/label as a text (bytes)"),
    ({f"f{index:02}": index for index in range(20)}, "f00 (int64), f01 (int64), f02 (int64), f03"),
])
@pytest.mark.parametrize("names", [True, False])
def test_other_features_are_named_with_what_is_needed(tmp_path, record, words, names):
    """TensorFlow would say of the first record that a key is missing, and the user would skip one record after the other."""
    write(tmp_path / "train-0-of-2.tfrecord", usual())
    write(tmp_path / "train-1-of-2.tfrecord", [b"", {}, b"\xff no example", *[record] * 30])
    if names:
        write_names(tmp_path)
    message = fault(tmp_path)
    assert message.startswith(f"{tmp_path}/train-1-of-2.tfrecord record 3: has the feature") and words in message
    assert message.endswith(WRITER) and (len(record) < 20 or "f11 (int64) and 8 more; needed" in message)


def test_one_record_of_another_kind_at_the_beginning_is_a_bad_example(tmp_path):
    write(tmp_path / "train.tfrecord", [{"image": IMAGE, "label": b"cat"}, *usual()])
    source = open_(tmp_path, limit=1)
    assert resident.load(source, "train", 7, (8, 8)).num_examples == 6 and len(source.bad.found) == 1


def test_files_of_two_kinds_are_refused(tmp_path):
    write(tmp_path / "train-0-of-2.tfrecord", usual())
    write(tmp_path / "train-1-of-2.tfrecord", usual(image="image/encoded", label="image/class/label"))
    message = fault(tmp_path)
    assert message.startswith(f"{tmp_path}/train-1-of-2.tfrecord: has the feature image/encoded, and ")
    assert f" and {tmp_path}/train-0-of-2.tfrecord has image; " in message


def test_records_that_are_no_examples_at_all(tmp_path):
    write(tmp_path / "train.tfrecord", [encoded(picture(index), "JPEG") for index in range(3)])
    write_names(tmp_path)
    assert fault(tmp_path) == f"{tmp_path}/train.tfrecord record 0: is no tf.train.Example, nor are those that follow; {WRITER}"


def test_images_that_cannot_be_decoded_are_a_matter_of_the_examples(tmp_path):
    write(tmp_path / "train.tfrecord", [{"image": b"raw pixels", "label": index} for index in range(3)])
    with pytest.raises(UnusableError, match="train.tfrecord record 0: .*no PNG, JPEG.*--max_bad_examples=N"):
        resident.load(open_(tmp_path), "train", 3, (8, 8))


def test_a_split_without_any_record_is_named_if_it_is_used(tmp_path):
    write(tmp_path / "train-0-of-2.tfrecord", usual())
    write(tmp_path / "train-1-of-2.tfrecord", [])
    for name in ("test-0-of-2", "test-1-of-2"):
        write(tmp_path / f"{name}.tfrecord", [])
    source = open_(tmp_path)
    assert source.num_examples("train", "train_split") == 6 and source.class_names == ("0", "1", "2")
    assert resident.load(source, "train[2:]", 4, (8, 8)).labels.tolist() == [2, 0, 1, 2]
    with pytest.raises(UnusableError, match=f"^--test_split=test: {tmp_path}/test-0-of-2.tfrecord and 1 more: no record in them"):
        source.num_examples("test", "test_split")
    assert fault(tmp_path, "train-1*").startswith(f"{tmp_path}/train-1-of-2.tfrecord: no record in it; ")


@pytest.mark.parametrize(("text", "words"), [
    ("a\n\nc\n", " line 2: is empty; "), ("\na\nb\nc\n", " line 1: is empty; "), ("a\r\n  \r\nc", " line 2: is empty; "),
    ("a\nb\na\n", " line 3: repeats the name a of line 1; "), ("a\nb \nb\n", " line 3: repeats the name b of line 2; "),
    ("caf\u00e9\nb\ncafe\u0301\n", " line 3: repeats the name cafe\u0301 of line 1; "),
    ("\ufeff\n \n", ": cannot be used (is empty); "), ("a\nb\nc\n".encode("utf-16"), ": cannot be used ("),
])
def test_names_of_classes_that_would_shift_are_named_by_their_line(tmp_path, text, words):
    """An empty line in the middle would give each class behind it the name of another."""
    write(tmp_path / "train.tfrecord", usual())
    write_names(tmp_path, text)
    message = fault(tmp_path)
    assert message.startswith(f"{tmp_path}/class_names.txt{words}")


@pytest.mark.parametrize("text", ["a\nb\nc", "a\nb\nc\n\n \n", "a\r\nb\r\nc\r\n\r\n", "\ufeffa\nb\nc\n", "a\rb\rc\r"])
def test_names_of_classes_of_any_system_with_empty_lines_at_the_end(tmp_path, text):
    write(tmp_path / "train.tfrecord", usual())
    write_names(tmp_path, text)
    assert open_(tmp_path).class_names == ("a", "b", "c")


def test_a_name_with_an_unusual_character_is_one_name(tmp_path):
    """Python also splits lines at characters that no editor shows as a line break; the names behind would shift."""
    write_tfrecords(tmp_path, [(picture(index), index) for index in range(3)], ("a\u2028b", "c\x0cd", "e"))
    assert open_(tmp_path).class_names == ("a\u2028b", "c\x0cd", "e")


def test_folders_with_different_names_of_classes(tmp_path):
    """The labels of one folder would mean other classes than those of the other."""
    for folder in ("x", "y"):
        write(tmp_path / folder / "train.tfrecord", usual())
        write_names(tmp_path / folder)
    assert open_(tmp_path, "*/*.tfrecord").class_names == ("a", "b", "c")
    write_names(tmp_path / "y", "a\nc\nb\n")
    message = fault(tmp_path, "*/*.tfrecord")
    assert message.startswith(f"{tmp_path}/y/class_names.txt line 2: is not as in {tmp_path}/x/class_names.txt; ")
    write_names(tmp_path / "y", "a\nb\nc\nd\n")
    assert fault(tmp_path, "*/*.tfrecord").startswith(f"{tmp_path}/y/class_names.txt line 4: is not as in")


def test_a_label_equal_to_the_number_of_names_says_that_labels_count_from_0(tmp_path):
    write(tmp_path / "train.tfrecord", usual(first=1))
    write_names(tmp_path)
    hint = "labels count from 0, and a first line for label 0 in class_names.txt serves labels that count from 1"
    with pytest.raises(UnusableError, match=f"record 2: has the label 3, out of range of 3 classes: {hint}"):
        resident.load(open_(tmp_path), "train", 6, (8, 8))
    write(tmp_path / "train.tfrecord", usual(first=2))
    with pytest.raises(UnusableError, match="record 2: has the label 4, out of range of 3 classes ") as caught:
        resident.load(open_(tmp_path, limit=1), "train", 6, (8, 8))
    assert "first line" not in str(caught.value)


@pytest.mark.parametrize(("names", "words"), [
    (("a", "", "c"), "class 1: its name is empty"), (("a", "b", "a"), "class 2: its name repeats the name a of line 1"),
    (("a\nb", "c"), "class 0: its name contains a line break"),
])
def test_the_writer_refuses_names_that_its_reader_would_refuse_or_shift(tmp_path, names, words):
    with pytest.raises(ValueError, match=f"^{words}"):
        write_tfrecords(tmp_path, [(picture(0), 0)], names)
    assert not list(tmp_path.iterdir())
