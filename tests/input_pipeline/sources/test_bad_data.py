"""Bad data ends the run with one line that names the file, the row and the remedy, or is skipped and listed up to the limit."""

import pickle
import struct
import warnings
import zipfile
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from source_files import CLASSES, encoded, picture, write_csv, write_folder, write_npz, write_records

from input_pipeline import sources
from input_pipeline.common.errors import SettingError, UnusableError
from input_pipeline.config import DataConfig
from input_pipeline.images import decoding as augment
from input_pipeline.images import headers, loading
from input_pipeline.images.loading import BadExamples
from input_pipeline.sources import npz as arrays
from input_pipeline.sources.tfrecord import write_tfrecords
from input_pipeline.splits import resident


def message_of(error, function, *arguments, **more):
    """The message of the error that a call raises, which must be one line."""
    with pytest.raises(error) as caught:
        function(*arguments, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def load(dataset, split="train", limit=0):
    """A Source and one of its splits, decoded at 8 x 8."""
    source = sources.open_source(DataConfig(dataset=str(dataset), max_bad_examples=limit))
    return source, resident.load(source, split, source.num_examples(split, "train_split"), (8, 8))


def noise(height=9, width=7, channels=3):
    """A random image."""
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def png_of(width, height):
    """A PNG of a few bytes whose header claims any size."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def jpeg_of(width, height):
    """A JPEG whose header claims any size."""
    small = encoded(noise(), "JPEG")
    place = small.index(b"\xff\xc0") + 5
    return small[:place] + struct.pack(">HH", height, width) + small[place + 4 :]


WHOLE = encoded(noise(40, 50))
PHOTO = encoded(noise(40, 50), "JPEG")
BAD_IMAGES = {
    "text": (b"not an image", "no PNG, JPEG"),
    "empty": (b"", "empty"),
    "cut PNG": (WHOLE[: len(WHOLE) // 2], "damaged or cut off"),
    "cut JPEG": (PHOTO[: len(PHOTO) * 9 // 10], "damaged or cut off"),
    "cut in its header": (PHOTO[:30], "damaged at its beginning"),
    "wrong checksum": (WHOLE[:2000] + bytes([WHOLE[2000] ^ 255]) + WHOLE[2001:], "damaged or cut off"),
    "huge PNG": (png_of(100_000, 100_000), "huge: 100000 x 100000"),
    "huge JPEG": (jpeg_of(65_000, 65_000), "huge: 65000 x 65000"),
    "no pixel": (png_of(0, 5), "0 x 5"),
    "TIFF": (encoded(noise(), "TIFF"), "no PNG, JPEG"),
    "palette BMP": (encoded(Image.fromarray(noise()).convert("P"), "BMP"), "BMP (24 or 32 bits)"),
}


@pytest.fixture(autouse=True)
def no_pickle(monkeypatch):
    """Fails if anything is unpickled, because somebody else's data could then run any program."""
    def refuse(*arguments, **more):
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_image_is_named_with_its_remedy(tmp_path, name):
    """TensorFlow's traceback names neither the file nor a remedy."""
    content, words = BAD_IMAGES[name]
    bad = write_folder(tmp_path) / "train" / "dog" / "004.png"
    bad.write_bytes(content)
    message = message_of(UnusableError, load, f"folder:{tmp_path}")
    assert message.startswith(f"{bad}: ") and words in message and "--max_bad_examples=N" in message
    assert UnusableError.exit_code == 3


def test_a_huge_image_is_refused_before_it_is_decoded(monkeypatch):
    """A few bytes that claim 30 GB would use up the memory of the machine."""
    decoded = []

    def decode_image(*arguments, **more):  # it may be traced, but must not run
        def note(*values):
            decoded.append(values)
            return np.zeros((8, 8, 3), np.uint8)

        return tf.ensure_shape(tf.numpy_function(note, arguments, tf.uint8), [None, None, 3])

    monkeypatch.setattr(tf.io, "decode_image", decode_image)
    monkeypatch.setattr(tf.image, "decode_and_crop_jpeg", decode_image)
    for content in (png_of(100_000, 100_000), jpeg_of(65_000, 65_000)):
        for decode in (augment.decode, lambda encoded: augment.decode_window(encoded, lambda *_: [0, 0, 8, 8], 8, None)):
            with pytest.raises(tf.errors.InvalidArgumentError, match="(?s)an image.*huge"):
                decode(tf.constant(content))
    assert not decoded
    augment.decode(tf.constant(png_of(8, 8)))
    assert len(decoded) == 1


def frames():
    return [Image.fromarray(noise()), Image.fromarray(255 - noise())]


def kinds_of_images():
    """{kind: (bytes, expected RGB)}; Pillow is the reference."""
    rgb = Image.fromarray(noise())
    wide = (noise(9, 7, 1)[..., 0].astype(np.uint16) << 8) + 200
    palette, alpha = rgb.convert("P"), Image.fromarray(noise(9, 7, 4))
    first, second = frames()
    cases = {
        "grey": (rgb.convert("L"), "PNG", {}), "palette": (palette, "PNG", {}), "alpha": (alpha, "PNG", {}),
        "grey and alpha": (rgb.convert("LA"), "PNG", {}), "one bit": (rgb.convert("1"), "PNG", {}), "BMP": (rgb, "BMP", {}),
        "WebP": (rgb, "WEBP", {"lossless": True}), "animated PNG": (first, "PNG", {"save_all": True, "append_images": [second]}),
    }
    found = {}
    for name, (image, kind, more) in cases.items():
        found[name] = encoded(image, kind, **more), np.asarray(image.convert("RGB"))
    found["16 bits"] = (encoded(wide), np.repeat((wide >> 8).astype(np.uint8)[..., None], 3, axis=-1))
    gif = encoded(first, "GIF", save_all=True, append_images=[second])
    found["animated GIF"] = (gif, None)
    found["CMYK JPEG"] = (encoded(rgb.convert("CMYK"), "JPEG"), None)
    return found


@pytest.mark.parametrize("kind", kinds_of_images())
def test_images_of_any_kind_become_three_channels_of_eight_bits(kind):
    """If palette indices were taken for grey values, or the bytes of 16 bits swapped, the images would look like noise."""
    content, expected = kinds_of_images()[kind]
    decoded = augment.decode(tf.constant(content)).numpy()
    assert decoded.dtype == np.uint8 and decoded.shape == (9, 7, 3)
    assert headers.check(content) == ""
    if expected is not None:
        np.testing.assert_array_equal(decoded, expected)
    elif kind == "animated GIF":  # its first frame, in 256 colours
        assert np.abs(decoded.astype(int) - noise()).mean() < np.abs(decoded.astype(int) - (255 - noise())).mean() / 3


def test_the_header_gives_the_size_of_any_kind_and_never_fails():
    """If the size were misread, the limit on pixels would have no effect. Random bytes must not raise an error."""
    image = Image.fromarray(noise(11, 23))
    for kind, more in (("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("GIF", {}), ("BMP", {}), ("WEBP", {}),
                       ("WEBP", {"lossless": True}), ("WEBP", {"exif": b"Exif\0\0"}), ("JPEG", {"comment": b"\xff\xc0" * 9})):
        content = encoded(image, kind, **more)
        assert tuple(headers.read_size(headers.io.BytesIO(content))) == (11, 23), (kind, more)
        for length in range(0, len(content), 3):
            headers.check(content[:length])
    generator = np.random.default_rng(1)
    for head in (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF1234WEBPVP8X", b"BM", b"GIF89a"):
        for _ in range(50):
            headers.check(head + generator.bytes(40))


def test_what_is_allowed_is_skipped_counted_and_listed(tmp_path):
    """One bad file in a million must not end a long run. The labels must stay with their images."""
    write_folder(tmp_path, count=90)
    for index, content in zip((4, 10, 31), (b"?", WHOLE[:900], png_of(90_000, 90_000)), strict=True):
        (tmp_path / "train" / "dog" / f"{index:03}.png").write_bytes(content)
    source, split = load(f"folder:{tmp_path}", limit=3)
    assert split.num_examples == 87
    order = split.images[:, 0, 0, 1].tolist()
    assert sorted(order) == sorted(set(range(90)) - {4, 10, 31})
    assert split.labels.tolist() == [index % 3 for index in order]
    assert len(source.bad.lines()) == 3 and all(str(tmp_path) in line for line in source.bad.lines())
    message = message_of(UnusableError, load, f"folder:{tmp_path}", limit=2)
    assert "--max_bad_examples=2" in message and "number 3" in message


def test_where_nothing_is_whole_one_line_says_so(tmp_path):
    """Otherwise an empty array of images would fail later, far from the cause."""
    for path in write_folder(tmp_path, count=3).rglob("*.png"):
        path.write_bytes(b"?")
    assert "no example that can be decoded" in message_of(UnusableError, load, f"folder:{tmp_path}", limit=9)


def test_a_class_without_images_is_named(tmp_path):
    """Otherwise a class that was never copied would be an output of the network that is never trained nor evaluated."""
    (write_folder(tmp_path) / "train" / "ant").mkdir()
    for limit in (0, 9):  # it is no bad example, so none may be skipped
        message = message_of(UnusableError, load, f"folder:{tmp_path}", limit=limit)
        assert message.startswith(f"{tmp_path / 'train' / 'ant'}: ") and "contains no .png" in message
        assert "fill it or remove it" in message and "max_bad_examples" not in message


def test_a_class_that_train_does_not_have_is_named(tmp_path):
    """Otherwise `Cat` would be evaluated as a class of its own next to `cat`."""
    (write_folder(tmp_path) / "test" / "cat").rename(tmp_path / "test" / "Cat")
    message = message_of(UnusableError, load, f"folder:{tmp_path}", "test[:50%]", limit=9)
    assert message.startswith(f"--train_split=test[:50%]: {tmp_path / 'test' / 'Cat'} is a class that train does not have")
    assert message.endswith("rename it as in train, or remove it")
    source, split = load(f"folder:{tmp_path}")  # the other split can be used
    assert source.class_names == CLASSES and split.num_examples == 30
    assert any(f"{tmp_path / 'test' / 'Cat'} is a class" in note for note in source.notes)


@pytest.mark.parametrize(("row", "words"), [
    ("images/099.png,cat,train", "no such file"), ("images/001.png,,train", "has no label"), (",cat,train", "has no image"),
    ("images/001.png", "has no label"), ("images/001.png,cat,", "has no split"), ("images/001.png,cat,a b", "split 'a b'"),
    ("../../../../etc/none.png,cat,train", "no such file"), ("images,cat,train", "images, which is a folder"),
])
def test_a_bad_row_is_named_by_its_line(tmp_path, row, words):
    """Without the line number, nobody finds the row in a table of a million."""
    table = write_csv(tmp_path, count=3, extra=[row])
    message = message_of(UnusableError, load, f"csv:{table}")
    assert message.startswith(f"{table} line 8") and words in message
    source, split = load(f"csv:{table}", limit=1)
    assert split.num_examples == 3 and len(source.bad.found) == 1


@pytest.mark.parametrize("label", ["-1", "7"])
def test_a_number_out_of_range_in_a_table(tmp_path, label):
    """-1 means unlabelled in many tables, and 7 of 3 classes is a mistake. On a GPU such labels crash, or worse, they do not."""
    table = write_csv(tmp_path, count=9, extra=[f"images/001.png,{label},train"])
    text = table.read_text()
    for number, name in enumerate(CLASSES):
        text = text.replace(f",{name},", f",{number},")
    table.write_text(text)
    message = message_of(UnusableError, load, f"csv:{table}")
    assert f"line 20: has the label {label}, out of range" in message
    assert load(f"csv:{table}", limit=1)[0].class_names == ("0", "1", "2")


@pytest.mark.parametrize(("content", "words"), [
    (b"file,label\n1.png,cat\n", "no column image"), (b"", "is empty; the first line must"),
    (b"image,label\n", "no row, only a header"),
    (b"image,label\n\xff\xfe,cat\n", "line 2: contains the byte 0xff and is not UTF-8"),
    (b'image,label\n"' + b"a" * 200_000 + b"\n", "line 2: opens a quotation mark that is not closed"),
    (b'image,label\n"' + b"a\n" * 700_000, "line 2: opens a quotation mark that is not closed within 1048576 characters"),
    (b"image,label\n" + b"a" * 2_000_000 + b"\n", "line 2: has more than 1048576 characters"),
])
def test_a_table_that_is_none(tmp_path, content, words):
    """Otherwise a column with another name would result in an empty data set or a KeyError."""
    table = tmp_path / "t.csv"
    table.write_bytes(content)
    message = message_of(UnusableError, load, f"csv:{table}")
    assert message.startswith(str(table)) and words in message


@pytest.mark.parametrize("name", ["x_train", "y_test", "else"])
def test_pickled_arrays_are_refused(tmp_path, name):
    """np.load with allow_pickle runs any program that the file contains."""
    path = write_npz(tmp_path / "a.npz", **{name: np.array([{"a": 1}], object)})
    message = message_of(UnusableError, load, f"npz:{path}")
    assert message.startswith(f"{path}: the array {name} is pickled")


def npz_cases():
    whole = np.zeros((30, 8, 8, 3), np.uint8)
    return {
        "float images": ({"x_train": whole.astype(np.float32)}, "uint8"), "flat images": ({"x_train": whole[:, 0, 0]}, "uint8"),
        "two channels": ({"x_train": whole[..., :2]}, "uint8"), "fewer labels": ({"y_train": np.arange(29)}, "29"),
        "one hot": ({"y_train": np.eye(30)}, "whole numbers"), "float labels": ({"y_test": np.zeros(30)}, "whole numbers"),
        "negative label": ({"y_train": np.array([0, 1, 2] * 9 + [0, 1, -1])},
                           "row 29 of y_train: has the label -1, out of range"),
        "label beyond": ({"y_test": np.array([0, 1, 2] * 9 + [0, 1, 3])}, "row 29 of y_test: has the label 3, out of range"),
        "label with a gap": ({"y_train": np.array([0, 1, 2] * 9 + [0, 1, 2**40])}, "row 29 of y_train"),
    }


@pytest.mark.parametrize("name", npz_cases())
def test_arrays_that_cannot_be_images_and_labels(tmp_path, name):
    """Floats converted to uint8 would be black images, and the labels of another split would be wrong."""
    arrays, words = npz_cases()[name]
    path = write_npz(tmp_path / "a.npz", **arrays)
    message = message_of(UnusableError, load, f"npz:{path}")
    assert message.startswith(str(path)) and words in message


def test_an_npz_file_that_is_damaged_or_another(tmp_path):
    """Such as a download that was interrupted."""
    path = write_npz(tmp_path / "a.npz")
    whole = path.read_bytes()
    np.savez(tmp_path / "b.npz", images=np.zeros(3))
    other = (tmp_path / "b.npz").read_bytes()
    spoiled = bytearray(whole)
    spoiled[whole.index(b"x_train.npy") + 400] ^= 255
    for content, words in ((whole[:500], "damaged"), (b"", "damaged"), (pickle.dumps([1]), "damaged"), (other, "x_train"),
                           (bytes(spoiled), "damaged")):
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            message = message_of(UnusableError, load, f"npz:{path}")
        assert str(path) in message and words in message


def example(**features):
    """A serialized tf.train.Example."""
    def feature(value):
        if isinstance(value, bytes):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    wrapped = {name: feature(value) for name, value in features.items()}
    return tf.train.Example(features=tf.train.Features(feature=wrapped)).SerializeToString()


GOOD = encoded(picture(1))
BAD_RECORDS = {
    "no label": (example(image=GOOD), "label"), "no image": (example(label=1), "image"),
    "no example": (b"rubbish", "cannot be read"), "label beyond": (example(image=GOOD, label=3), "label 3, out of range"),
    "cut image": (example(image=WHOLE[:900], label=1), "cut off"),
    "label a text": (example(image=GOOD, label=b"cat"), "label"),
    "negative label": (example(image=GOOD, label=-1), "without a label"),
}


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_a_bad_record_is_named_by_file_and_number(tmp_path, name):
    """Without the number, nobody finds the record in a file of a hundred thousand."""
    record, words = BAD_RECORDS[name]
    path = sorted(write_records(tmp_path, splits=("train",)).glob("*.tfrecord"))[1]
    records = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    with tf.io.TFRecordWriter(str(path)) as writer:
        for content in [*records[:6], record, *records[6:]]:
            writer.write(content)
    message = message_of(UnusableError, load, f"tfrecord:{tmp_path}/*.tfrecord")
    assert message.startswith(f"{path} record 6: ") and words in message
    source, split = load(f"tfrecord:{tmp_path}/*.tfrecord", limit=1)
    assert split.num_examples == 30 and len(source.bad.found) == 1


def test_a_broken_checksum_is_named_or_skipped_alone(tmp_path):
    """Such as a bit flipped on the disk. Skipping the rest of the file too would silently lose data."""
    path = sorted(write_records(tmp_path, splits=("train",)).glob("*.tfrecord"))[1]
    content, position = bytearray(path.read_bytes()), 0
    for _ in range(4):
        position += 16 + int.from_bytes(content[position : position + 8], "little")
    content[position + 20] ^= 1
    path.write_bytes(content)
    message = message_of(UnusableError, load, f"tfrecord:{tmp_path}/*.tfrecord")
    assert message.startswith(f"{path} record 4: is damaged")
    source, split = load(f"tfrecord:{tmp_path}/*.tfrecord", limit=1)
    assert split.num_examples == 29 and source.num_examples("train", "train_split") == 29
    assert list(source.bad.found) == [f"{path} record 4"]
    assert sorted(split.images[:, 0, 0, 1].tolist()) == sorted(set(range(30)) - {1 + 3 * 4})


@pytest.mark.parametrize("content", [b"text that is no record at all", b"\x1f\x8b" + bytes(40), None])
def test_a_file_that_ends_within_a_record(tmp_path, content):
    """Such as an interrupted copy, or a compressed file."""
    path = sorted(write_records(tmp_path, splits=("train",)).glob("*.tfrecord"))[1]
    path.write_bytes(path.read_bytes()[:-5] if content is None else content)
    message = message_of(UnusableError, load, f"tfrecord:{tmp_path}/*.tfrecord")
    assert message.startswith(f"{path}: ends within record ")


def test_files_of_splits_and_of_none(tmp_path):
    """If the file silently belonged to no split, its data would be lost."""
    path = sorted(write_records(tmp_path).glob("*.tfrecord"))[1]
    path.rename(tmp_path / "more.tfrecord")
    assert "more.tfrecord: its name holds none" in message_of(UnusableError, load, f"tfrecord:{tmp_path}/*.tfrecord")


@pytest.mark.parametrize(("dataset", "words"), [
    ("folder:", "give folder:PATH"), ("tfrecord:", "tfrecord:PATTERN"), ("foldr:/x", "did you mean folder:PATH"),
    ("CSV:/x", "did you mean csv:PATH"), ("tfrecords:/x", "tfrecord:PATTERN"),
    ("folder:{0}/none", "no such folder"), ("npz:{0}/none", "no such file"),
    ("csv:{0}", "is a folder; give the file, such as csv:"),
    ("npz:{0}", "is a folder; give the file, such as npz:"), ("tfrecord:{0}", "is a folder; give a PATTERN of its files"),
    ("csv:{0}/none", "no such file"),
    ("tfrecord:{0}/*.none", "no file matches"), ("folder:{0}", "<split>/<class>/"), ("folder:{0}/\0", "control characters"),
])
def test_names_of_files_that_cannot_work_are_setting_errors(tmp_path, dataset, words):
    """If a misspelled prefix were taken for a TFDS name, the error would be about TFDS."""
    dataset = dataset.format(tmp_path)
    message = message_of(SettingError, load, dataset)
    assert message.startswith(f"--dataset={dataset}: ") and words in message


def test_each_thing_counts_once_however_often_it_is_read():
    """Overlapping splits, or opening the test split again, must not use up the limit."""
    bad = BadExamples(1)
    bad.add("a.png", "is cut off", "replace it")
    bad.add("a.png", "is cut off", "replace it")
    assert bad.lines() == ["a.png: is cut off"]
    with pytest.raises(UnusableError, match="b.png"):
        bad.add("b.png", "is cut off", "replace it")


@pytest.mark.parametrize("kind", ["folder", "tfrecord"])
def test_what_a_stream_failed_on_is_found_and_named(tmp_path, kind):
    """TensorFlow's error from a stream does not name the file, and nobody finds it among a million."""
    if kind == "folder":
        where = str(write_folder(tmp_path) / "train" / "owl" / "011.png")
        (tmp_path / "train" / "owl" / "011.png").write_bytes(WHOLE[:900])
        source = sources.open_source(DataConfig(dataset=f"folder:{tmp_path}"))
    else:
        examples = [(WHOLE[:900] if index == 11 else picture(index), 0) for index in range(30)]
        where = f"{write_tfrecords(tmp_path, examples, CLASSES)[0]} record 11"
        source = sources.open_source(DataConfig(dataset=f"tfrecord:{tmp_path}/*.tfrecord"))
    assert message_of(UnusableError, loading.name_bad_example, source, "train").startswith(f"{where}: is damaged or cut off")
    times = iter([0.0, 99.0])
    loading.name_bad_example(source, "train", clock=lambda: next(times))  # the time is up: it neither raises nor finds anything


# Malicious files.


def gif_of(frames, width, height):
    """A GIF of a few bytes whose frames claim any size."""
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\x00"
    return b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0) + frame * frames + b";"


def test_frames_of_a_gif_count_too():
    """TensorFlow decodes all frames before it returns the first, so 100 kB could take 60 GB."""
    assert headers.check(gif_of(1, 8, 8)) == "" and headers.check(gif_of(100, 500, 500)) == ""
    assert "frames have 67600000 pixels" in headers.check(gif_of(100, 1300, 520))
    assert "frames have 4294836225 pixels" in headers.check(gif_of(1, 65535, 65535))
    for length in range(1, 60):
        headers.check(gif_of(3, 8, 8)[:-length])


def test_a_jpeg_of_fill_bytes_is_given_up():
    """Any number of fill bytes may precede a marker, and reading a gigabyte of them one by one takes minutes."""
    start = PHOTO[:2]
    assert headers.check(start + b"\xff" * 1000 + PHOTO[3:]) == ""
    assert "damaged at its beginning" in headers.check(start + b"\xff" * 10_000_000 + PHOTO[3:])


@pytest.mark.parametrize("kind", ["folder", "csv"])
def test_an_image_file_of_a_terabyte_is_not_read(tmp_path, kind):
    """A sparse file takes no space on the disk, but reading it would use up all memory."""
    root = write_folder(tmp_path) if kind == "folder" else write_csv(tmp_path).parent
    huge = root / "train" / "dog" / "004.png" if kind == "folder" else root / "images" / "004.png"
    with open(huge, "r+b") as file:
        file.truncate(2**40)
    message = message_of(UnusableError, load, f"folder:{root}" if kind == "folder" else f"csv:{root / 'table.csv'}")
    assert "has 1099511627776 bytes" in message and ("004.png" in message or "line 10:" in message)


def test_a_record_of_a_gigabyte_is_not_read(tmp_path):
    path = tmp_path / "train.tfrecord"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", 2**40))
        file.truncate(2**40 + 16)
    assert "ends within record 0" in message_of(UnusableError, load, f"tfrecord:{path}")


def test_names_of_classes_that_are_no_text(tmp_path):
    (write_records(tmp_path, splits=("train",)) / "class_names.txt").write_bytes(b"\xff\xfe")
    assert message_of(UnusableError, load, f"tfrecord:{tmp_path}/*.tfrecord").startswith(f"{tmp_path / 'class_names.txt'}: ")


def npy_header(claimed):
    """The beginning of an .npy file whose header claims to be `claimed` bytes long, followed by zeros."""
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", claimed) + b"{" + bytes(2_000_000)


def npz_of(path, member, **more):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x_train.npy", member, **more)
    return path


def test_an_npz_file_whose_header_is_a_bomb(tmp_path):
    """NumPy would read as many bytes as the header claims before it finds that the header is too long."""
    message = message_of(UnusableError, load, f"npz:{npz_of(tmp_path / 'a.npz', npy_header(2**32 - 1))}")
    assert "damaged" in message and "x_train, y_train" in message


def test_an_array_larger_than_the_memory_is_refused_by_its_header(tmp_path, monkeypatch):
    """Zeros can be compressed to a thousandth of their size."""
    monkeypatch.setattr(arrays, "free_gigabytes", lambda: 0.001)
    path = write_npz(tmp_path / "a.npz", x_train=np.zeros((30, 200, 200, 3), np.uint8))
    source = sources.open_source(DataConfig(dataset=f"npz:{path}", image_size=8))
    message = message_of(UnusableError, source.read.__self__.load, "x_train")
    assert "the array x_train takes 0.0036 GB, 0.001 GB of memory are free" in message


def test_an_encrypted_npz_file(tmp_path):
    """zipfile raises a RuntimeError if it needs a password."""
    content = bytearray(write_npz(tmp_path / "a.npz").read_bytes())
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := content.find(signature, at + 1)) >= 0:
            content[at + place] |= 1
    (tmp_path / "a.npz").write_bytes(content)
    assert "encrypted" in message_of(UnusableError, load, f"npz:{tmp_path / 'a.npz'}")


def test_labels_of_5000_digits_are_names(tmp_path):
    """Python refuses to convert a text of more than 4,300 digits to a number."""
    table = write_csv(tmp_path, count=3, header="image,label", splits=("train",), extra=[f"images/000.png,{'9' * 5000}"])
    assert len(sources.open_source(DataConfig(dataset=f"csv:{table}")).class_names) == 4
