"""A user's own folder, arrays, table and TFRecord files: every example comes once, with its label, for any slice and input."""

import os

import numpy as np
import pytest
import tensorflow as tf
from source_files import CLASSES, KINDS, encoded, picture, write_any, write_csv, write_folder, write_npz, write_records

from input_pipeline import sources, splits
from input_pipeline.common.errors import SettingError
from input_pipeline.config import DataConfig
from input_pipeline.sources.tfrecord import encoded_examples, write_tfrecords
from input_pipeline.splits import resident
from input_pipeline.splits import stream as streaming


def open_(dataset, **more):
    """The Source of --dataset."""
    return sources.open_source(DataConfig(dataset=str(dataset), **more))


def read(source, split, **more):
    """{index read from the pixels: label} of a split read into memory, and the indices in order."""
    config = DataConfig(dataset="shapes", input="memory", **more)
    whole = splits.open_split(config, source, split, "train_split", log=lambda line: None)
    order = whole.images[:, 0, 0, 1].tolist()
    for index, image in zip(order, whole.images, strict=True):
        np.testing.assert_array_equal(image, picture(index))
    return dict(zip(order, whole.labels.tolist(), strict=True)), order


@pytest.fixture(params=KINDS)
def source(request, tmp_path):
    """A Source of each kind: 30 examples in `train` and `test`, classes cat, dog, owl in turns."""
    return open_(write_any(request.param, tmp_path))


def test_every_example_comes_once_with_its_label_and_class_name(source):
    """With labels off by one, or names in another order than labels, training works but the reports are wrong."""
    assert source.class_names == CLASSES
    assert source.image_shape == (8, 8, 3)
    for split in ("train", "test"):
        labels, order = read(source, split)
        assert sorted(order) == list(range(30))
        assert labels == {index: index % 3 for index in range(30)}


@pytest.mark.parametrize("cut", ["90%", "33%", "7"])
def test_slices_are_disjoint_and_complete(source, cut):
    """A validation split that shares images with the training split would measure what the network has memorized."""
    _, first = read(source, f"train[:{cut}]")
    _, second = read(source, f"train[{cut}:]")
    _, whole = read(source, "train")
    assert first + second == whole if not hasattr(source, "files") else sorted(first + second) == sorted(whole)


@pytest.mark.parametrize(("split", "count"), [
    ("train[:33%]", 10), ("train[33%:66%]", 10), ("train[66%:]", 10), ("train[10:25]", 15), ("train[-4:]", 4),
    ("train[:50%]+test[:3]", 18), ("test", 30), ("train[:5%]", 2), ("train[:15%]", 4), ("train[5:9]+train[7:12]", 9),
])
def test_slices_round_as_tfds_rounds(source, split, count):
    """One image more or less than in TFDS would make the results of two sources differ for no visible reason."""
    instructions = source.num_examples(split, "train_split")
    assert instructions == count
    assert len(list(source.records(split))) == count


@pytest.mark.parametrize("split", ["nope", "", "train[:90", "train[a:b]", "train[:0]", "train[90%:10%]", "train[9999:]"])
def test_splits_that_cannot_work_are_told_in_one_line_with_what_there_is(source, split):
    """An empty split would cause a division by zero an hour later."""
    with pytest.raises(SettingError) as caught:
        source.num_examples(split, "test_split")
    message = str(caught.value)
    assert message.startswith(f"--test_split={split}: ") and "\n" not in message
    assert "larger slice" in message or ("train (30)" in message and "test (30)" in message)


def test_the_order_does_not_change_between_two_openings(tmp_path):
    """The order of a directory listing differs between machines, so a resumed run would continue with other data."""
    for kind in KINDS:
        folder = tmp_path / kind
        folder.mkdir()
        dataset = write_any(kind, folder)
        assert read(open_(dataset), "train")[1] == read(open_(dataset), "train")[1]


@pytest.mark.parametrize("kind", ["folder", "csv"])
def test_a_slice_of_files_sorted_by_class_holds_all_classes(tmp_path, kind):
    """train[90%:] of a sorted listing would contain only the last class."""
    if kind == "folder":
        source = open_(f"folder:{write_folder(tmp_path, splits=('',), count=90, label_of=lambda index: index // 30)}")
    else:
        table = write_csv(tmp_path, header="image,label", splits=("",), count=90)
        lines = table.read_text().splitlines()
        table.write_text("\n".join([lines[0], *sorted(lines[1:], key=lambda line: line.split(",")[1])]))
        source = open_(f"csv:{table}")
    assert source.split_sizes() == {"train": 90}
    for split in ("train[:80%]", "train[80%:]"):
        assert set(read(source, split)[0].values()) == {0, 1, 2}


def test_a_file_more_leaves_the_order_of_the_others(tmp_path):
    """Adding an image must not move half of the validation images into the training split."""
    before = read(open_(f"folder:{write_folder(tmp_path)}"), "train")[1]
    (tmp_path / "train" / "owl" / "new.png").write_bytes(encoded(picture(77)))
    assert [index for index in read(open_(f"folder:{tmp_path}"), "train")[1] if index != 77] == before


@pytest.mark.parametrize("split", ["train", "train[:50%]+test[:5]"])
def test_a_shuffled_epoch_is_a_permutation_that_seed_and_epoch_decide(source, split):
    """If the order differed between two runs with one seed, a run could not be resumed. An epoch must not miss an example."""
    def order(seed, epoch):
        tf.random.set_seed(np.random.default_rng().integers(1000))  # this must have no effect
        epochs = tf.data.Dataset.from_tensors(tf.constant(epoch, tf.int64))  # in a graph, as a stream calls it
        return list(epochs.flat_map(lambda epoch: source.shuffled_records(split, seed, epoch, 8192)).as_numpy_iterator())

    plain = sorted(source.records(split).as_numpy_iterator())
    orders = [order(0, 0), order(0, 1), order(1, 0)]
    assert all(sorted(each) == plain for each in orders)
    assert len({tuple(each) for each in orders}) == 3
    assert order(0, 1) == orders[1]


def test_stream_and_memory_read_the_same(source):
    """--input=auto decides by the size of the memory, and the numbers must not depend on that."""
    streamed = streaming.StreamingSplit(source, "train[:50%]", 15, 8, 0)
    loaded = resident.load(source, "train[:50%]", 15, (8, 8))
    batch = next(iter(streamed.evaluation_batches(16)))
    np.testing.assert_array_equal(batch["image"][:15], loaded.images)
    np.testing.assert_array_equal(batch["label"][:15], loaded.labels)
    assert batch["weight"].numpy().tolist() == [1] * 15 + [0]
    trained = next(iter(streamed.training_batches(3, 7, 15, ())))
    assert sorted(trained["image"][:, 0, 0, 1].numpy()) == sorted(loaded.images[:, 0, 0, 1])


def test_opening_decodes_and_reads_no_image(tmp_path, monkeypatch):
    """Otherwise the start on a large folder would take hours, even for --mode=evaluate of ten images."""
    dataset = f"folder:{write_folder(tmp_path)}"
    monkeypatch.setattr(tf.io, "decode_image", None)
    assert open_(dataset).num_examples("train", "train_split") == 30


@pytest.mark.parametrize("kind", ["folder", "csv"])
def test_images_of_several_sizes_want_an_image_size(tmp_path, kind):
    """If the size of the first image were taken for all, the second would crash, in a stream an hour later."""
    (write_folder if kind == "folder" else write_csv)(tmp_path)
    image = tmp_path / ("train/cat/000.png" if kind == "folder" else "images/000.png")
    image.write_bytes(encoded(picture(0, (9, 12))))
    source = open_(f"{kind}:{tmp_path if kind == 'folder' else tmp_path / 'table.csv'}")
    assert source.image_shape is None
    with pytest.raises(SettingError, match="^--image_size=0: "):
        read(source, "train")
    assert len(read(source, "train", image_size=8)[1]) == 30


def test_a_class_name_of_any_bytes_becomes_text(tmp_path):
    """It is written to JSON files, tables and pictures, none of which accept half a character."""
    for name in (b"caf\xe9", b"tea"):
        folder = os.path.join(os.fsencode(tmp_path), b"train", name)
        os.makedirs(folder)
        with open(os.path.join(folder, b"1.png"), "wb") as file:
            file.write(encoded(picture(3)))
    source = open_(f"folder:{tmp_path}")
    assert source.class_names == ("caf\\xe9", "tea") and source.split_sizes() == {"train": 2}
    assert resident.load(source, "train", 2, (8, 8)).num_examples == 2


@pytest.mark.parametrize("name", ["JPG", "jpeg", "PNG"])
def test_names_of_any_writing(tmp_path, name):
    """Cameras write IMG.JPG. Hidden files and text files next to the images are not images."""
    folder = tmp_path / "train" / "für, alle"
    folder.mkdir(parents=True)
    (folder / f"1 2.{name}").write_bytes(encoded(picture(3), "PNG" if name == "PNG" else "JPEG"))
    for other in (".DS_Store", "._1.jpg", "notes.txt"):
        (folder / other).write_text("no image")
    (tmp_path / "train" / "all").mkdir()
    (tmp_path / "train" / "all" / "2.png").write_bytes(encoded(picture(200)))
    (tmp_path / ".git").mkdir()
    source = open_(f"folder:{tmp_path}")
    assert source.class_names == ("all", "für, alle")
    assert source.split_sizes() == {"train": 2}
    loaded = resident.load(source, "train", 2, (8, 8))
    images = dict(zip(loaded.labels.tolist(), loaded.images, strict=True))
    np.testing.assert_allclose(images[1], picture(3), atol=3)
    np.testing.assert_array_equal(images[0], picture(200))


def test_a_table_counts_numbers_orders_names_and_reads_paths_above_it(tmp_path):
    """Sorting "10" and "9" as texts would swap classes. Tables next to a folder of images contain paths with `..`."""
    (tmp_path / "tables").mkdir()
    lines = ["label,image,width"]
    for index in range(12):
        (tmp_path / f"{index}.png").write_bytes(encoded(picture(index)))
        lines.append(f"{index}, ../{index}.png, 8")
    (tmp_path / "tables" / "t.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())  # as spreadsheets save it
    source = open_(f"csv:{tmp_path / 'tables' / 't.csv'}")
    assert source.class_names == tuple(str(index) for index in range(12))
    assert read(source, "train")[0] == {index: index for index in range(12)}


@pytest.mark.parametrize(("shape", "expected"), [((5, 7), 3), ((5, 7, 1), 3), ((5, 7, 4), 3), ((6, 6, 3), 3), ((1, 1, 3), 3)])
def test_arrays_of_any_channels_keep_every_pixel(tmp_path, shape, expected):
    """No accuracy would reveal an error in rows of odd width, red and blue swapped, or a flipped image."""
    images = np.random.default_rng(0).integers(0, 256, (4, *shape), np.uint8)
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x_train=images, y_train=np.arange(4), x_test=images, y_test=np.arange(4))
    source = open_(f"npz:{path}")
    assert source.class_names == ("0", "1", "2", "3")
    loaded = resident.load(source, "train", 4, shape[:2]).images
    images = images[..., None] if len(shape) == 2 else images
    np.testing.assert_array_equal(loaded, np.broadcast_to(images[..., :3], (4, *shape[:2], expected)))


def test_the_writer_copies_any_source_without_loss(source, tmp_path):
    """Encoding JPEGs again would lose quality, and losing a label or a name would change the task."""
    folder = tmp_path / "copy"
    for split in ("train", "test"):
        paths = write_tfrecords(folder, encoded_examples(source, split), source.class_names, split, 2)
        assert [path.name for path in paths] == [f"{split}-{number:05}-of-00002.tfrecord" for number in range(2)]
    copy = open_(f"tfrecord:{folder}/*.tfrecord")
    assert copy.class_names == CLASSES
    for split in ("train", "test"):
        before = sorted(encoded_examples(source, split))
        assert sorted(encoded_examples(copy, split)) == before


def test_records_without_class_names_and_split_words(tmp_path, capsys):
    """Files from other programs have neither. They are all `train`, and the classes are counted."""
    folder = write_records(tmp_path, splits=("train",))
    (folder / "class_names.txt").unlink()
    for number, path in enumerate(sorted(folder.glob("*.tfrecord"))):
        path.rename(folder / f"part{number}")
    source = open_(f"tfrecord:{folder}/part*")
    assert source.class_names == ("0", "1", "2")
    assert "class_names.txt" in capsys.readouterr().err
    assert sorted(read(source, "train")[1]) == list(range(30))


def test_the_writer_refuses_what_its_reader_would(tmp_path):
    """Otherwise the file would be found unreadable a week later. A label must be an index into the names."""
    with pytest.raises(ValueError, match="example 1: label 3"):
        write_tfrecords(tmp_path, [(picture(0), 0), (picture(1), 3)], CLASSES)
    with pytest.raises(ValueError, match="holdout"):
        write_tfrecords(tmp_path, [], CLASSES, split="holdout")
    assert not list(tmp_path.glob("*.tfrecord"))


def test_npz_loads_images_only_when_they_are_read(tmp_path):
    """Opening a source must not take the memory of its images."""
    source = open_(f"npz:{write_npz(tmp_path / 'a.npz')}")
    loaded = source.read.__self__._loaded
    assert set(loaded) == {"y_train", "y_test"}
    read(source, "test")
    assert set(loaded) == {"y_train", "y_test", "x_test"}
