"""Labels that are whole numbers: single mistakes are bad examples, labels that count in another way stop the run."""

import numpy as np
import pytest
from source_files import encoded, picture, write_npz

from input_pipeline import sources
from input_pipeline.common.errors import UnusableError
from input_pipeline.config import DataConfig
from input_pipeline.sources.labels import check_labels, numbered_classes, short_list
from input_pipeline.sources.tfrecord import write_tfrecords


@pytest.mark.parametrize(("labels", "text"), [
    ([3, 5], "labels 3 and 5"), ([1, 2, 3], "labels 1 to 3"), ([5], "label 5"), ([0, 1], "labels 0 and 1"),
    ([0, 1, 2, 3, 5, 6, 7, 8, 9], "labels 0 to 3 and 5 to 9"), ([-1, 0, 1, 2, 7], "labels -1 to 2 and 7"),
    ([2, 4, 6], "labels 2, 4 and 6"), (range(0, 100, 2), "labels 0, 2, 4, 6, ... and 98"),
    ([9, 1, 2**40], "labels 1, 9 and 1099511627776"),
])
def test_labels_in_a_short_form(labels, text):
    assert short_list(set(labels)) == text


@pytest.mark.parametrize(("labels", "found"), [
    ([0, 1, 2] * 5 + [7, -1], None), ([0, 1, 2] * 5 + [7, 7, 9], "labels 0 to 2, 7 and 9"), ([0, 1] * 9 + [5], None),
    ([0, 1] * 9 + [5, 5], "labels 0, 1 and 5"), ([0] * 9 + [7], "labels 0 and 7"), ([1, 2, 3], "labels 1 to 3"), ([4], "label 4"),
    ([0, 1, 2], None), ([0, 0], None), ([0, 1, 2, -1, -1, -1], "labels -1 to 2"),
])
def test_fewer_labels_out_of_range_than_classes_are_mistakes_more_are_a_fault(labels, found):
    """If labels that count from 1, or have a gap, were bad examples, whole classes would be skipped one example at a time."""
    classes = len(numbered_classes(labels))
    if found is None:
        assert check_labels("data", {"train": labels}, classes, "remedy") == {}
    else:
        with pytest.raises(UnusableError) as caught:
            check_labels("data", {"train": labels}, classes, "do this")
        message = str(caught.value)
        assert message.startswith(f"data: has the {found}; labels must count the classes from 0 without a gap: ")
        assert message.endswith("renumber them, or do this") and ("without a label" in message) == (min(labels) < 0)


def test_a_split_without_labels_is_a_fault_of_that_split():
    """Many test splits are published with the label -1, and nobody has to use them."""
    faults = check_labels("data", {"train": [0, 1, 2], "test": [-1, -1, -1], "val": [0, 2]}, 3, "do this")
    assert list(faults) == ["test"] and faults["test"].startswith("data: test has the label -1; ")
    with pytest.raises(UnusableError, match="^data: has the labels 3 and 4; "):
        check_labels("data", {"fold1": [3, 4], "fold2": [3, 4]}, 0, "do this")


def write_table(folder, labels, splits):
    (folder / "0.png").write_bytes(encoded(picture(0)))
    rows = [f"0.png,{label},{split}\n" for label, split in zip(labels, splits, strict=True)]
    (folder / "t.csv").write_text("image,label,split\n" + "".join(rows))
    return f"csv:{folder / 't.csv'}"


def write_arrays(folder, labels, splits):
    arrays = {}
    for split in dict.fromkeys(splits):
        arrays[f"y_{split}"] = np.array([label for label, other in zip(labels, splits, strict=True) if other == split])
        arrays[f"x_{split}"] = np.zeros((len(arrays[f"y_{split}"]), 8, 8, 3), np.uint8)
    np.savez(folder / "a.npz", **arrays)
    return f"npz:{folder / 'a.npz'}"


def write_numbered_records(folder, labels, splits):
    shift = -min(labels)
    for split in dict.fromkeys(splits):
        chosen = [(picture(0), label + shift) for label, other in zip(labels, splits, strict=True) if other == split]
        path, = write_tfrecords(folder, chosen, [str(index) for index in range(20)], split)
        if shift:  # the writer refuses labels below 0, so change the bytes that hold them
            renumber(path, shift)
    (folder / "class_names.txt").unlink()
    return f"tfrecord:{folder}/*.tfrecord"


def renumber(path, shift):
    import tensorflow as tf

    records = [tf.train.Example.FromString(record) for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator()]
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            record.features.feature["label"].int64_list.value[0] -= shift
            writer.write(record.SerializeToString())


@pytest.mark.parametrize("write", [write_table, write_arrays, write_numbered_records])
def test_every_kind_of_data_follows_the_rule(tmp_path, write):
    def open_(labels, splits, limit=0):
        for path in tmp_path.iterdir():
            path.unlink()
        return sources.open_source(DataConfig(dataset=write(tmp_path, labels, splits), max_bad_examples=limit))

    train = ["train"] * 12
    assert open_([0, 1, 2, 3] * 3, train).class_names == ("0", "1", "2", "3")
    wrong = {"labels 1 to 3;": [1, 2, 3] * 4, "labels 3 and 5;": [3, 5] * 6, "labels 0, 1 and 3;": [0, 1, 3] * 4}
    for words, labels in wrong.items():
        with pytest.raises(UnusableError) as caught:
            open_(labels, train, limit=99)
        message = str(caught.value)
        assert words in message and "from 0 without a gap" in message and "name" in message
        assert "max_bad_examples" not in message and "0 classes" not in message
    source = open_([0, 1, 2, 3] * 2 + [0, 1, 2, 9], train, limit=1)
    assert source.class_names == ("0", "1", "2", "3")
    source = open_([0, 1, 2] * 2 + [-1] * 6, ["train"] * 6 + ["test"] * 6)
    assert source.class_names == ("0", "1", "2") and source.num_examples("train", "train_split") == 6 and not source.bad.found
    with pytest.raises(UnusableError, match=r"^--test_split=test\[:3\]: .*: test has the label -1; labels must count"):
        source.num_examples("test[:3]", "test_split")


def test_names_of_arrays_do_not_hide_labels_that_count_from_1(tmp_path):
    names = np.array(["cat", "dog", "owl"])
    labels = np.arange(30) % 3 + 1
    path = write_npz(tmp_path / "a.npz", y_train=labels, y_test=labels, class_names=names)
    with pytest.raises(UnusableError, match="has the labels 1 to 3; .*correct class_names, whose 3 names are those of the label"):
        sources.open_source(DataConfig(dataset=f"npz:{path}", max_bad_examples=99))
