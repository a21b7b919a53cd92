"""--dataset=npz:PATH, arrays in one file as keras.datasets saves them. Nothing in it is ever unpickled."""

import io
import lzma
import os
import pathlib
import struct
import threading
import tokenize
import zipfile
import zlib

import numpy as np
import tensorflow as tf

from input_pipeline.common.errors import UnusableError
from input_pipeline.common.memory import free_gigabytes
from input_pipeline.images.bad_examples import BadExamples
from input_pipeline.sources.base import file_state
from input_pipeline.sources.listed import Listed, ListedSource, count_classes

# What zipfile and NumPy raise for files that are damaged, encrypted or made to harm.
_DAMAGED = (OSError, ValueError, EOFError, KeyError, TypeError, IndexError, OverflowError, RuntimeError, MemoryError, SyntaxError,
            struct.error, zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError)
_MOST_ARRAYS, _LONGEST_HEADER = 1000, 2**16
WANTED = "give one with x_train, y_train, x_test and y_test as keras.datasets saves them"


def open_npz(config, path):
    """Opens arrays `x_<split>`, uint8 [n, height, width] or [n, height, width, 1, 3 or 4], and `y_<split>`, [n] or [n, 1].

    The order is the arrays' own. Classes are named 0, 1, ... as far as y_train counts without a gap, or by an
    array `class_names` of texts where there is one. Labels are read, of the images only the header.

    Args:
      config: DataConfig.
      path: the file; may begin with ~.

    Raises:
      UnusableError: it is damaged or pickled, an array is missing or has another shape or type, or a label is out of range.
    """
    file, bad = pathlib.Path(os.path.expanduser(path)), BadExamples(config.max_bad_examples)
    arrays = _Arrays(file)
    splits = [name[2:] for name in arrays.headers if name.startswith("x_")]
    missing = [f"y_{split}" for split in splits if f"y_{split}" not in arrays.headers] or ["x_train"] * (not splits)
    if missing:
        raise UnusableError(f"{file}: has no array {missing[0]}, but {', '.join(arrays.headers) or 'none'}; {WANTED}")
    shapes = {_image_shape(file, f"x_{split}", *arrays.headers[f"x_{split}"]) for split in splits}
    labels = {split: _labels(arrays, split) for split in splits}
    names = _class_names(arrays, labels)
    examples = {split: [] for split in splits}
    for split in splits:
        for row, label in enumerate(labels[split].tolist()):
            where = f"{file} row {row} of x_{split}"
            if 0 <= label < len(names):
                examples[split].append(Listed(label, f"x_{split} {row}".encode(), where))
            else:
                bad.add(f"{file} row {row} of y_{split}", f"has the label {label}, out of range",
                        f"there are {len(names)} classes, from 0 on; mend it")
    shape = shapes.pop() if len(shapes) == 1 else None
    state = file_state(file)
    return ListedSource(config.dataset, names, shape, examples, arrays.read, str(file), lambda _: state, bad=bad)


class _Arrays:
    """The arrays of a file. `headers`: {name: (shape, dtype)}. Images are loaded when the first of them is read."""

    def __init__(self, file):
        self.file, self._loaded, self._lock = file, {}, threading.Lock()
        self.headers = {}
        try:
            with zipfile.ZipFile(file) as members:
                if len(members.infolist()) > _MOST_ARRAYS:
                    raise ValueError(f"holds {len(members.infolist())} arrays")
                for info in members.infolist():
                    if info.filename.endswith(".npy"):
                        with members.open(info) as member:
                            self.headers[info.filename.removesuffix(".npy")] = _header(member, info)
        except _DAMAGED as error:
            raise UnusableError(f"{file}: is no .npz file or damaged ({error}); {WANTED}") from None
        pickled = [name for name, (_, dtype) in self.headers.items() if dtype.hasobject]
        if pickled:
            raise UnusableError(f"{file}: the array {pickled[0]} is pickled, which is never opened here, since it can run any "
                                "program; save it as a plain array of numbers or texts")

    def load(self, name):
        """A whole array; read-only."""
        with self._lock:
            if name not in self._loaded:
                self._refuse_too_large(name)
                try:
                    with np.load(self.file, allow_pickle=False) as members:
                        self._loaded[name] = members[name]
                except _DAMAGED as error:
                    raise UnusableError(f"{self.file}: the array {name} is damaged ({error}); copy the file again") from None
            return self._loaded[name]

    def _refuse_too_large(self, name):
        """A small file may claim, and hold, an array a thousand times its size."""
        shape, dtype = self.headers[name]
        gigabytes, free = _num_bytes(shape, dtype) / 1e9, free_gigabytes()
        if gigabytes > free:
            remedy = f"takes {gigabytes:.3g} GB, {free:.3g} GB of memory are free; give the images as files, folder: or tfrecord:"
            raise UnusableError(f"{self.file}: the array {name} {remedy}")

    def read(self, image):
        """A scalar string tensor, such as "x_train 17" -> the encoded image."""
        def encode(text):
            text = text if isinstance(text, bytes) else text.item()  # outside a graph it comes as an array
            name, row = text.decode().split(" ")
            return encode_bmp(self.load(name)[int(row)])

        return tf.ensure_shape(tf.numpy_function(encode, [image], tf.string, stateful=False), [])


def encode_bmp(image):
    """A BMP file of uint8 [height, width] or [height, width, 1, 3 or 4]: no compression, so almost free, and no loss."""
    pixels = np.broadcast_to(image[..., None], (*image.shape, 3)) if image.ndim == 2 else image
    pixels = np.broadcast_to(pixels, (*pixels.shape[:2], 3)) if pixels.shape[2] == 1 else pixels[..., :3]
    height, width, _ = pixels.shape
    rows = np.zeros((height, (width * 3 + 3) // 4 * 4), np.uint8)  # each a multiple of four bytes
    rows[:, : width * 3] = pixels[..., ::-1].reshape(height, -1)
    # A negative height: the first row is the top one.
    info = struct.pack("<IiiHHIIiiII", 40, width, -height, 1, 24, 0, rows.size, 0, 0, 0, 0)
    return struct.pack("<2sIHHI", b"BM", 54 + rows.size, 0, 0, 54) + info + rows.tobytes()


def _header(member, info):
    start = io.BytesIO(member.read(_LONGEST_HEADER))  # no more: it may say of itself that it is gigabytes long
    version = np.lib.format.read_magic(start)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(start)
    claimed = _num_bytes(shape, dtype)
    if min(shape, default=0) < 0 or (not dtype.hasobject and info.file_size - start.tell() != claimed):
        raise ValueError(f"{info.filename} is {list(shape)}, {claimed} bytes, and holds {info.file_size - start.tell()}")
    return shape, dtype


def _num_bytes(shape, dtype):
    return int(np.prod(shape, dtype=object)) * dtype.itemsize


def _image_shape(file, name, shape, dtype):
    if dtype != np.uint8 or len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3, 4)):
        text = f"{file}: the array {name} is {dtype} {list(shape)}; images must be uint8 [n, height, width] or "
        raise UnusableError(text + "[n, height, width, 1, 3 or 4], 0 to 255")
    return (*shape[1:3], 3)


def _labels(arrays, split):
    (shape, dtype), count = arrays.headers[f"y_{split}"], arrays.headers[f"x_{split}"][0][0]
    if shape not in ((count,), (count, 1)) or dtype.kind not in "iu":
        text = f"{arrays.file}: y_{split} is {dtype} {list(shape)}, for {count} images"
        raise UnusableError(f"{text}; labels must be whole numbers, one an image, counted from 0")
    return arrays.load(f"y_{split}").reshape(-1).astype(np.int64)


def _class_names(arrays, labels):
    if "class_names" in arrays.headers and arrays.headers["class_names"][1].kind == "U":
        return tuple(arrays.load("class_names").ravel().tolist())
    counted = labels.get("train", next(iter(labels.values())))
    return tuple(str(number) for number in range(count_classes(counted.tolist())))
