"""Photos that were taken sideways are turned upright, wherever files are decoded, as Pillow turns them."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from source_files import encoded

from input_pipeline import sources
from input_pipeline.config import DataConfig
from input_pipeline.images import decoding, headers, orientation, resized_crop
from input_pipeline.splits import resident, stream

ORIENTATIONS = range(1, 9)
KINDS = {"JPEG": {"quality": 98, "subsampling": 0}, "PNG": {}, "WEBP": {"lossless": True}}
TAG = 0x0112
BYTES = [tf.TensorSpec([], tf.string)]
read_in_graph, decode, decode_unchecked = (
    tf.function(function, input_signature=BYTES) for function in (orientation.read, decoding.decode, decoding.decode_unchecked))


def smooth(height=36, width=52):
    """A soft image that looks different from every side, uint8."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [rows * 255 // height, columns * 255 // width, (2 * rows + columns) * 255 // (2 * height + width)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def stored(image, turn):
    """What the sensor of a camera stores of an upright image. Only a quarter turn is not its own inverse."""
    return np.asarray(turned(image, {6: 8, 8: 6}.get(turn, turn)))


def turned(image, turn):
    """An array turned by Pillow."""
    exif = Image.Exif()
    exif[TAG] = turn
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(image, "PNG", exif=exif)))))


def photo(image, kind, turn, **more):
    """The bytes of an image file that shows an upright image if its EXIF is applied; turn=None: without EXIF."""
    exif = Image.Exif()
    exif[0x010F] = "maker"
    exif[TAG] = turn or 1
    return encoded(stored(image, turn or 1), kind, **(KINDS[kind] | ({"exif": exif} if turn else {}) | more))


def by_pillow(content):
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))


def as_stored(content):
    """The pixels as the file stores them, by TensorFlow; those of a JPEG with EXIF by the transform that Pillow uses."""
    if content[:3] == b"\xff\xd8\xff" and b"Exif\0\0" in content:
        return tf.io.decode_jpeg(content, channels=3, dct_method="INTEGER_ACCURATE").numpy()
    return tf.io.decode_image(content, channels=3, expand_animations=False).numpy()


def read(content):
    """The orientation of a file, by Python and by TensorFlow, which must agree."""
    found = headers.read_orientation(io.BytesIO(content))
    assert read_in_graph(content) == found
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("turn", [None, *ORIENTATIONS])
def test_a_file_is_decoded_as_pillow_turns_it(kind, turn):
    content = photo(smooth(), kind, turn)
    assert read(content) == (turn or 1)
    assert tuple(headers.read_size(io.BytesIO(content))) == (36, 52)
    for decoded in (decode(content), decode_unchecked(content)):
        np.testing.assert_array_equal(decoded, turned(as_stored(content), turn or 1))
        # Without EXIF, a JPEG is decoded by TensorFlow's faster transform.
        np.testing.assert_allclose(decoded, by_pillow(content).astype(int), atol=6 if kind == "JPEG" and not turn else 0)


def test_images_with_alpha_and_animations_are_turned_too():
    first, second = (np.dstack([stored(image, 6), np.full((52, 36), 200, np.uint8)]) for image in (smooth(), 255 - smooth()))
    exif = Image.Exif()
    exif[TAG] = 6
    moving = {"save_all": True, "append_images": [Image.fromarray(second)]}
    for kind, more in (("PNG", {}), ("WEBP", {}), ("WEBP", moving)):
        content = encoded(first, kind, exif=exif, **(KINDS[kind] | more))
        for function in (decode, decode_unchecked):
            np.testing.assert_array_equal(function(content), smooth())


@tf.function(input_signature=BYTES)
def cut(content):
    """A window whose place depends on the size of the image; for 36 x 52 it begins at row 3 and column 17."""
    return decoding.decode_window(content, lambda height, width: tf.stack([height - 33, width - 35, 24, 24]), 24, None)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("turn", ORIENTATIONS)
def test_a_window_is_chosen_in_the_upright_image(kind, turn):
    content = photo(smooth(), kind, turn)
    np.testing.assert_allclose(cut(content), smooth()[3:27, 17:41].astype(int), atol=0 if kind == "PNG" else 5)
    np.testing.assert_allclose(cut(content), by_pillow(content)[3:27, 17:41].astype(int), atol=1)


@tf.function(input_signature=[*BYTES, tf.TensorSpec([2], tf.int64)])
def cut_randomly(content, key):
    window_of, mirrored = resized_crop.random_window(key)
    return decoding.decode_window(content, window_of, 24, mirrored)


def test_the_random_windows_of_a_sideways_photo_are_those_of_the_upright_one():
    """The same draws choose the same part, of any shape, so training does not depend on how the camera was held."""
    for position, turn in enumerate(ORIENTATIONS):
        upright, sideways = (cut_randomly(photo(smooth(60, 90), "JPEG", how), [7, position]) for how in (None, turn))
        np.testing.assert_allclose(sideways, upright.numpy().astype(int), atol=6)


def write_tree(root, sideways):
    """24 photos, eight of them JPEG, in a class of their own. The other tree has the same names and order, and is all PNG."""
    for index in range(24):
        kind = list(KINDS)[index % 3]
        folder = root / "train" / ("a" if kind == "JPEG" else "b")
        folder.mkdir(parents=True, exist_ok=True)
        image = np.roll(smooth(), index, axis=2) // (1 + index % 5)
        (folder / f"{index:02}.png").write_bytes(photo(image, kind, 1 + index // 3) if sideways else encoded(image))
    return sources.open_source(DataConfig(dataset=f"folder:{root}"))


def test_memory_stream_and_evaluation_see_upright_images(tmp_path):
    """They see what they see if the same images are stored upright and without EXIF: same sizes, order and windows."""
    def batches(source):
        assert source.image_shape == (36, 52, 3)
        for size in ((36, 52), (28, 28)):
            held = resident.load(source, "train", 24, size)
            yield held.images, held.labels
        split = stream.StreamingSplit(source, "train", 24, 28, 4)
        for dataset in (split.training_batches(1, 0, 24, ("crop", "flip")), split.evaluation_batches(24)):
            batch = next(iter(dataset))
            yield batch["image"].numpy(), batch["label"].numpy()

    pairs = list(zip(batches(write_tree(tmp_path / "b", True)), batches(write_tree(tmp_path / "a", False)), strict=True))
    assert len(pairs) == 4
    for (found, labels), (expected, same) in pairs:
        np.testing.assert_array_equal(labels, same)
        np.testing.assert_array_equal(found[labels == 1], expected[labels == 1])
        np.testing.assert_allclose(found[labels == 0].astype(int), expected[labels == 0], atol=6)


# Where EXIF stands in a file, and how it is written.


def exif_of(entries, order="<", table=8, count=None):
    """EXIF whose first table has entries (tag, kind, number, value as 4 bytes)."""
    packed = b"".join(struct.pack(f"{order}HHI", *entry[:3]) + entry[3] for entry in entries)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", table)
    return head.ljust(table, b"\0") + struct.pack(f"{order}H", len(entries) if count is None else count) + packed + b"\0" * 4


def entry(turn, order="<", kind=3, number=1):
    return TAG, kind, number, struct.pack(order + ("I" if kind == 4 else "H"), turn).ljust(4, b"\0")


def jpeg_with(*segments):
    """A JPEG with segments (marker, content) before all others."""
    whole = encoded(smooth(), "JPEG")
    return whole[:2] + b"".join(struct.pack(">BBH", 255, marker, len(data) + 2) + data for marker, data in segments) + whole[2:]


def png_with(*chunks, last=False):
    """A PNG with chunks (name, content) behind its first chunk, or before its last."""
    whole = encoded(smooth())
    place = len(whole) - 12 if last else 33
    added = b""
    for name, data in chunks:
        added += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return whole[:place] + added + whole[place:]


SIX = exif_of([entry(6)])


def test_exif_behind_other_segments_and_chunks():
    """Behind a comment, a colour profile of two segments, XMP, and text that looks like EXIF; in a PNG also behind the pixels."""
    text, profile = (0xFE, b"Exif\0\0 is mentioned"), (0xE2, b"ICC_PROFILE\0" + b"\xff\xe1" * 30_000)
    xmp, exif = (0xE1, b"http://ns.adobe.com/xap/1.0/\0"), (0xE1, b"Exif\0\0" + SIX)
    fill = jpeg_with(exif).replace(b"\xff\xe1", b"\xff\xff\xff\xe1", 1)
    for content in (jpeg_with(text, profile, profile, xmp, exif), fill, png_with((b"tEXt", b"a\0eXIf"), (b"eXIf", SIX)),
                    png_with((b"eXIf", SIX), last=True), png_with((b"eXIf", b"Exif\0\0" + SIX))):
        assert read(content) == 6
        assert decode(content).shape == (52, 36, 3)
        np.testing.assert_allclose(decode(content), by_pillow(content).astype(int), atol=1)
    assert read(jpeg_with(text, profile)) == 1


OTHERS = st.tuples(st.integers(256, 273), st.just(3), st.just(1), st.binary(min_size=4, max_size=4))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from("<>"), st.sampled_from([1, 3, 4]), st.integers(0, 20), st.integers(0, 200), st.lists(OTHERS, max_size=20),
       st.booleans())
def test_any_well_formed_exif_is_read_as_by_pillow(order, kind, turn, padding, others, first):
    """Both byte orders, types of numbers, places of the table, orientations that do not exist, and other entries around."""
    mine = entry(turn, order, kind)
    exif = exif_of([mine, *others] if first else [*others, mine], order, 8 + padding)
    content = jpeg_with((0xE1, b"Exif\0\0" + exif))
    stated = Image.open(io.BytesIO(content)).getexif().get(TAG)
    assert read(content) == (stated if stated in ORIENTATIONS else 1)


OTHER = 1, 3, 1, b"abcd"
MALFORMED = {
    "empty": b"", "only a mark": b"II*\0", "another mark": b"XX*\0" + SIX[4:], "table beyond the end": SIX[:4] + b"\xff" * 4,
    "cut in the entry": SIX[:-8], "zero": exif_of([entry(0)]), "nine": exif_of([entry(9)]), "65535": exif_of([entry(65535)]),
    "several values": exif_of([entry(6, number=2)]), "a text": exif_of([entry(6, kind=2)]), "no entries": exif_of([]),
    "more entries than there are": exif_of([OTHER], count=65535), "behind too many": exif_of([OTHER] * 5000 + [entry(6)]),
    "the table is the header": b"II*\0" + b"\0" * 40,
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_exif_is_ignored(name):
    for content in (jpeg_with((0xE1, b"Exif\0\0" + MALFORMED[name])), png_with((b"eXIf", MALFORMED[name]))):
        assert read(content) == 1
        for function in (decode, decode_unchecked):
            np.testing.assert_array_equal(function(content), as_stored(content))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(list(KINDS)), st.lists(st.tuples(st.integers(0, 119), st.integers(0, 255)), max_size=4),
       st.integers(0, 2**16))
def test_damaged_files_raise_no_error_of_their_exif(kind, changes, length):
    """Python and TensorFlow read the same orientation from any bytes, and a file that can be decoded is turned by it."""
    content = bytearray(photo(smooth(8, 12), kind, 6))
    for place, value in changes:
        content[place % len(content)] = value
    content = bytes(content[: 1 + length % (4 * len(content))])
    turn = read(content)
    assert turn in ORIENTATIONS
    with contextlib.suppress(tf.errors.InvalidArgumentError, tf.errors.UnimplementedError):
        decoded = decode_unchecked(content).numpy()
        np.testing.assert_array_equal(decoded, turned(as_stored(content), turn))


class Counting(io.BytesIO):
    """A file that counts how often it is read, and how much."""

    reads = size = 0

    def read(self, size=-1):
        data = super().read(size)
        self.reads, self.size = self.reads + 1, self.size + len(data)
        return data


MALICIOUS = {
    "fill bytes": jpeg_with((0xE1, b"Exif\0\0" + SIX)).replace(b"\xff\xe1", b"\xff" * 200_000 + b"\xe1", 1),
    "segments": jpeg_with(*[(0xE1, b"")] * 50_000, (0xE1, b"Exif\0\0" + SIX)),
    "chunks": png_with(*[(b"aaaa", b"")] * 100_000, (b"eXIf", SIX)),
    "a huge table": png_with((b"eXIf", exif_of([OTHER], count=65535) + b"\0" * 2**24)),
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_a_malicious_file_takes_little_work(name):
    file = Counting(MALICIOUS[name])
    assert headers.read_orientation(file) == 1
    assert file.reads < 5 * headers.MOST_PARTS and file.size < 2 * headers.MOST_EXIF_BYTES
    assert read_in_graph(MALICIOUS[name]) == 1
