"""A user's own folder, arrays, table and TFRecord files: every example once, with its label, whatever the slice and the path."""

import os

import numpy as np
import pytest
import tensorflow as tf
from source_files import CLASSES, KINDS, encoded, picture, write_any, write_csv, write_folder, write_npz, write_records

from input_pipeline import sources, splits
from input_pipeline.common.errors import SettingError
from input_pipeline.config import DataConfig
from input_pipeline.splits import resident
from input_pipeline.splits import stream as streaming


def open_(dataset, **more):
    """The Source of --dataset."""
    return sources.open_source(DataConfig(dataset=str(dataset), **more))


def read(source, split, **more):
    """{index told by the pixels: label} of a split read into memory, and the indices in order."""
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
    """A label off by one, or names in another order than labels, trains well and reports nonsense."""
    assert source.class_names == CLASSES
    assert source.image_shape == (8, 8, 3)
    for split in ("train", "test"):
        labels, order = read(source, split)
        assert sorted(order) == list(range(30))
        assert labels == {index: index % 3 for index in range(30)}


@pytest.mark.parametrize("cut", ["90%", "33%", "7"])
def test_slices_are_disjoint_and_complete(source, cut):
    """A validation split that shares images with the training split measures memory."""
    _, first = read(source, f"train[:{cut}]")
    _, second = read(source, f"train[{cut}:]")
    _, whole = read(source, "train")
    assert first + second == whole if not hasattr(source, "files") else sorted(first + second) == sorted(whole)


@pytest.mark.parametrize(("split", "count"), [
    ("train[:33%]", 10), ("train[33%:66%]", 10), ("train[66%:]", 10), ("train[10:25]", 15), ("train[-4:]", 4),
    ("train[:50%]+test[:3]", 18), ("test", 30), ("train[:5%]", 2), ("train[:15%]", 4), ("train[5:9]+train[7:12]", 9),
])
def test_slices_round_as_tfds_rounds(source, split, count):
    """One image more or less than TFDS would give makes results of two sources differ for no visible reason."""
    instructions = source.num_examples(split, "train_split")
    assert instructions == count
    assert len(list(source.records(split))) == count


@pytest.mark.parametrize("split", ["nope", "", "train[:90", "train[a:b]", "train[:0]", "train[90%:10%]", "train[9999:]"])
def test_splits_that_cannot_work_are_told_in_one_line_with_what_there_is(source, split):
    """An empty split would divide by zero an hour later."""
    with pytest.raises(SettingError) as caught:
        source.num_examples(split, "test_split")
    message = str(caught.value)
    assert message.startswith(f"--test_split={split}: ") and "\n" not in message
    assert "larger slice" in message or ("train (30)" in message and "test (30)" in message)


def test_the_order_does_not_change_between_two_openings(tmp_path):
    """The order of a directory listing differs between machines; a resumed run would go on with other data."""
    for kind in KINDS:
        folder = tmp_path / kind
        folder.mkdir()
        dataset = write_any(kind, folder)
        assert read(open_(dataset), "train")[1] == read(open_(dataset), "train")[1]


@pytest.mark.parametrize("kind", ["folder", "csv"])
def test_a_slice_of_files_sorted_by_class_holds_all_classes(tmp_path, kind):
    """train[90%:] of a sorted listing holds the last class alone."""
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
    """An image that is added must not move half of the validation images into the training split."""
    before = read(open_(f"folder:{write_folder(tmp_path)}"), "train")[1]
    (tmp_path / "train" / "owl" / "new.png").write_bytes(encoded(picture(77)))
    assert [index for index in read(open_(f"folder:{tmp_path}"), "train")[1] if index != 77] == before


@pytest.mark.parametrize("split", ["train", "train[:50%]+test[:5]"])
def test_a_shuffled_epoch_is_a_permutation_that_seed_and_epoch_decide(source, split):
    """An order that differs between two runs of one seed cannot be resumed; one without replacement must miss nothing."""
    def order(seed, epoch):
        tf.random.set_seed(np.random.default_rng().integers(1000))  # which must not matter
        epochs = tf.data.Dataset.from_tensors(tf.constant(epoch, tf.int64))  # in a graph, as a stream calls it
        return list(epochs.flat_map(lambda epoch: source.shuffled_records(split, seed, epoch, 8192)).as_numpy_iterator())

    plain = sorted(record.numpy() for record in source.records(split))
    orders = [order(0, 0), order(0, 1), order(1, 0)]
    assert all(sorted(each) == plain for each in orders)
    assert len({tuple(each) for each in orders}) == 3
    assert order(0, 1) == orders[1]


def test_stream_and_memory_read_the_same(source):
    """The path is chosen by the size of the memory; the numbers must not depend on it."""
    streamed = streaming.StreamingSplit(source, "train[:50%]", 15, 8, 0)
    loaded = resident.load(source, "train[:50%]", 15, (8, 8))
    batch = next(iter(streamed.evaluation_batches(16)))
    np.testing.assert_array_equal(batch["image"][:15], loaded.images)
    np.testing.assert_array_equal(batch["label"][:15], loaded.labels)
    assert batch["weight"].numpy().tolist() == [1] * 15 + [0]
    trained = next(iter(streamed.training_batches(3, 7, 15, ())))
    assert sorted(trained["image"][:, 0, 0, 1].numpy()) == sorted(loaded.images[:, 0, 0, 1])


def test_opening_decodes_and_reads_no_image(tmp_path, monkeypatch):
    """A start on a large folder would take hours, and --mode=evaluate of ten images as long."""
    dataset = f"folder:{write_folder(tmp_path)}"
    monkeypatch.setattr(tf.io, "decode_image", None)
    assert open_(dataset).num_examples("train", "train_split") == 30


@pytest.mark.parametrize("kind", ["folder", "csv"])
def test_images_of_several_sizes_want_an_image_size(tmp_path, kind):
    """A first image taken for all would crash on the second, an hour later in a stream."""
    (write_folder if kind == "folder" else write_csv)(tmp_path)
    image = tmp_path / ("train/cat/000.png" if kind == "folder" else "images/000.png")
    image.write_bytes(encoded(picture(0, (9, 12))))
    source = open_(f"{kind}:{tmp_path if kind == 'folder' else tmp_path / 'table.csv'}")
    assert source.image_shape is None
    with pytest.raises(SettingError, match="^--image_size=0: "):
        read(source, "train")
    assert len(read(source, "train", image_size=8)[1]) == 30


def test_a_class_name_of_any_bytes_becomes_text(tmp_path):
    """It goes into JSON files, tables and pictures, none of which takes half a character."""
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
    """Cameras write IMG.JPG; hidden files and texts beside the images are none."""
    folder = tmp_path / "train" / "für, alle"
    folder.mkdir(parents=True)
    (folder / f"1 2.{name}").write_bytes(encoded(picture(3), "PNG" if name == "PNG" else "JPEG"))
    for other in (".DS_Store", "._1.jpg", "notes.txt"):
        (folder / other).write_text("no image")
    (tmp_path / ".git").mkdir()
    source = open_(f"folder:{tmp_path}")
    assert source.class_names == ("für, alle",)
    assert source.split_sizes() == {"train": 1}
    np.testing.assert_allclose(resident.load(source, "train", 1, (8, 8)).images[0], picture(3), atol=3)


def test_a_table_counts_numbers_orders_names_and_reads_paths_above_it(tmp_path):
    """Labels "10" and "9" sorted as texts would swap classes; .. is how tables beside a folder of images are written."""
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
    """A row of an odd width, a swapped red and blue or a flipped image would not be seen in any accuracy."""
    images = np.random.default_rng(0).integers(0, 256, (4, *shape), np.uint8)
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x_train=images, y_train=np.arange(4), x_test=images, y_test=np.arange(4))
    source = open_(f"npz:{path}")
    assert source.class_names == ("0", "1", "2", "3")
    loaded = resident.load(source, "train", 4, shape[:2]).images
    images = images[..., None] if len(shape) == 2 else images
    np.testing.assert_array_equal(loaded, np.broadcast_to(images[..., :3], (4, *shape[:2], expected)))


def test_the_writer_copies_any_source_without_loss(source, tmp_path):
    """JPEGs encoded once more lose quality; a label or a name lost on the way changes the task."""
    folder = tmp_path / "copy"
    for split in ("train", "test"):
        paths = sources.write_tfrecords(folder, sources.encoded_examples(source, split), source.class_names, split, 2)
        assert [path.name for path in paths] == [f"{split}-{number:05}-of-00002.tfrecord" for number in range(2)]
    copy = open_(f"tfrecord:{folder}/*.tfrecord")
    assert copy.class_names == CLASSES
    for split in ("train", "test"):
        before = sorted(sources.encoded_examples(source, split))
        assert sorted(sources.encoded_examples(copy, split)) == before


def test_records_without_class_names_and_split_words(tmp_path, capsys):
    """Files from another program have neither; they are all `train`, and the classes are counted."""
    folder = write_records(tmp_path, splits=("train",))
    (folder / "class_names.txt").unlink()
    for number, path in enumerate(sorted(folder.glob("*.tfrecord"))):
        path.rename(folder / f"part{number}")
    source = open_(f"tfrecord:{folder}/part*")
    assert source.class_names == ("0", "1", "2")
    assert "class_names.txt" in capsys.readouterr().err
    assert sorted(read(source, "train")[1]) == list(range(30))


def test_the_writer_refuses_what_its_reader_would(tmp_path):
    """A file that is found unreadable a week later; a label beyond the names."""
    with pytest.raises(ValueError, match="example 1: label 3"):
        sources.write_tfrecords(tmp_path, [(picture(0), 0), (picture(1), 3)], CLASSES)
    with pytest.raises(ValueError, match="holdout"):
        sources.write_tfrecords(tmp_path, [], CLASSES, split="holdout")
    assert not list(tmp_path.glob("*.tfrecord"))


def test_npz_loads_images_only_when_they_are_read(tmp_path):
    """To open a source must not cost the memory of its images."""
    source = open_(f"npz:{write_npz(tmp_path / 'a.npz')}")
    loaded = source.read.__self__._loaded
    assert set(loaded) == {"y_train", "y_test"}
    read(source, "test")
    assert set(loaded) == {"y_train", "y_test", "x_test"}
