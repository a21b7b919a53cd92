"""What every source must have, whatever its kind: examples, and two classes or more, each with a name of its own."""

import numpy as np
import pytest
from source_files import KINDS, encoded, picture, write_folder

from input_pipeline import sources
from input_pipeline.common.errors import SettingError, UnusableError
from input_pipeline.config import DataConfig
from input_pipeline.sources.base import RecordFiles
from input_pipeline.sources.tfrecord import write_tfrecords


def write_one_class(kind, folder):
    """A data set of any kind in which all 6 examples are a `cat`; returns the value for --dataset."""
    if kind == "folder":
        return f"folder:{write_folder(folder, count=6, label_of=lambda index: 0)}"
    if kind == "npz":
        images = np.stack([picture(index) for index in range(6)])
        np.savez(folder / "a.npz", x_train=images, y_train=np.zeros(6, int), class_names=np.array(["cat"]))
        return f"npz:{folder / 'a.npz'}"
    if kind == "csv":
        (folder / "1.png").write_bytes(encoded(picture(1)))
        (folder / "a.csv").write_text("image,label\n" + "1.png,cat\n" * 6)
        return f"csv:{folder / 'a.csv'}"
    write_tfrecords(folder, ((picture(index), 0) for index in range(6)), ["cat"])
    return f"tfrecord:{folder}/*.tfrecord"


@pytest.mark.parametrize("kind", KINDS)
def test_one_class_is_refused(tmp_path, kind):
    """A network with one output is always right, and its accuracy of 100 % says nothing."""
    dataset = write_one_class(kind, tmp_path)
    with pytest.raises(UnusableError) as caught:
        sources.open_source(DataConfig(dataset=dataset, max_bad_examples=9))
    message = str(caught.value)
    assert message == f"--dataset={dataset}: has one class, cat; a classifier needs at least two, so give the data of all classes"


def records(**splits):
    """A RecordFiles whose splits have files with so many records; nothing reads them here."""
    return RecordFiles("tfrecord:*", ("a", "b"), None, splits, parse=None)


def check(monkeypatch, source):
    """Opens the data set of a module whose `open_source` returns `source`."""
    monkeypatch.setattr("input_pipeline.sources.tfds.open_source", lambda config, path, bad: source)
    return sources.open_source(DataConfig())


def test_empty_files_are_named(monkeypatch):
    """An export that failed leaves an empty file; "give a larger slice" would be no help."""
    with pytest.raises(UnusableError, match=r"^--dataset=tfrecord:\*: contains no example \(a, b, c\)"):
        check(monkeypatch, records(train=[("a", 0), ("b", 0)], test=[("c", 0)]))
    source = check(monkeypatch, records(train=[("a", 0), ("b", 4)], test=[(f"c{index}", 0) for index in range(7)]))
    assert source.num_examples("train", "train_split") == 4
    for split in ("test", "test[:50%]", "train+test"):
        with pytest.raises(UnusableError) as caught:
            source.num_examples(split, "test_split")
        message = str(caught.value)
        assert message.startswith(f"--test_split={split}: tfrecord:* has no example in test (c0, c1, c2, c3, c4, ...); ")
    with pytest.raises(SettingError, match="larger slice"):
        source.num_examples("train[:0]", "train_split")


def test_names_that_two_classes_have_are_named(monkeypatch):
    """In a report or a table of predictions, nobody could tell them apart."""
    source = RecordFiles("mine", ("cat", "dog", "owl", "dog", "cat", "cat"), None, {"train": [("a", 4)]}, parse=None)
    with pytest.raises(UnusableError, match="^--dataset=mine: has several classes with the name cat, dog; give each"):
        check(monkeypatch, source)


def test_a_fault_belongs_to_a_split_and_not_to_the_numbers_of_a_slice():
    """A folder of images may have the name of a number."""
    source = records(train=[("a", 4)], test=[("b", 4)])
    source.faults["50"] = "50 contains no class folders"
    assert source.num_examples("train[:50%]+test[50%:]", "train_split") == 4
    with pytest.raises(UnusableError, match="^--test_split=50: 50 contains no class folders"):
        source.num_examples("50", "test_split")
