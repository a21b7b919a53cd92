"""--dataset=npz:PATH, arrays in one file as keras.datasets saves them. Nothing in it is ever unpickled."""

import io
import math
import struct
import threading
import zipfile

import numpy as np
import tensorflow as tf

from input_pipeline.common.batches import free_gigabytes
from input_pipeline.common.errors import UnusableError, one_line
from input_pipeline.sources.base import file_state
from input_pipeline.sources.labels import check_labels, numbered_classes
from input_pipeline.sources.listed import Listed, ListedSource

_LONGEST_HEADER = 2**16
WANTED = "give one with x_train, y_train, x_test and y_test as keras.datasets saves them"


def open_source(config, path, bad):
    """Opens arrays `x_<split>`, uint8 [n, height, width] or [n, height, width, 1, 3 or 4], and `y_<split>`, [n] or [n, 1].

    The examples are in the order of the arrays. An array `class_names` of texts, if there is one, names the classes. Otherwise
    they are named 0, 1, ... up to the first number that is not in y_train. Reads the labels, but only the headers of the images.
    Raises UnusableError if it is damaged or pickled, an array is missing, empty or has another form, or a label is out of range.
    """
    arrays = _Arrays(path)
    splits = _splits(arrays)
    labels = {split: _labels(arrays, split) for split in splits}
    empty = "is empty, 0 images; save the images again, or leave the array out"
    faults = {split: f"{path}: the array x_{split} {empty}" for split in splits if not labels[split]}
    if len(faults) == len(splits):
        raise UnusableError(faults.get("train") or faults[splits[0]])
    if names := _names(arrays):
        remedy = f"correct class_names, whose {len(names)} names are those of the labels from 0"
    else:
        names = numbered_classes(labels.get("train") or next(filter(None, labels.values())))
        remedy = "save an array class_names of texts, whose first is the name of label 0"
    faults |= check_labels(path, labels, len(names), remedy)
    examples = {split: [] for split in splits}
    for split in splits:
        for row, label in enumerate(labels[split]):
            if 0 <= label < len(names):
                examples[split].append(Listed(label, f"x_{split} {row}".encode(), f"{path} row {row} of x_{split}"))
            elif split not in faults:
                bad.add(f"{path} row {row} of y_{split}", f"has the label {label}, out of range",
                        f"there are {len(names)} classes, counted from 0; correct the label")
    sizes, state = {arrays.headers[f"x_{split}"][0][1:3] for split in splits if labels[split]}, file_state(path)
    shape = (*sizes.pop(), 3) if len(sizes) == 1 else None
    return ListedSource(config.dataset, names, shape, examples, arrays.read, path, lambda _: state, bad=bad, faults=faults)


def _splits(arrays):
    """The names after x_. Raises UnusableError if there is none, or if an array has no counterpart in x_ or y_."""
    splits = [name[2:] for name in arrays.headers if name.startswith("x_")]
    missing = [f"y_{split}" for split in splits if f"y_{split}" not in arrays.headers]
    missing += [f"x_{name[2:]}" for name in arrays.headers if name.startswith("y_") and f"x_{name[2:]}" not in arrays.headers]
    if missing or not splits:
        others = one_line(", ".join(arrays.headers)) or "none"
        raise UnusableError(f"{arrays.file}: has no array {(missing or ['x_train'])[0]}, but {others}; {WANTED}")
    return splits


def _names(arrays):
    """The array class_names as a tuple of texts; empty if there is none."""
    if "class_names" not in arrays.headers:
        return ()
    shape, dtype = arrays.headers["class_names"]
    if dtype.kind not in "US" or math.prod(shape) == 0:
        remedy = "save it as an array of texts, one for each class, or leave it out"
        raise UnusableError(f"{arrays.file}: the array class_names is {dtype} {list(shape)}; {remedy}")
    try:
        names = [name if dtype.kind == "U" else name.decode() for name in arrays.load("class_names").ravel().tolist()]
    except UnicodeDecodeError as error:
        remedy = "save the array as one of texts"
        raise UnusableError(f"{arrays.file}: a name in class_names is not UTF-8 ({error}); {remedy}") from None
    if empty := [number for number, name in enumerate(names) if not name.strip()]:
        raise UnusableError(f"{arrays.file}: name {empty[0]} in class_names is empty; give each class a name")
    return tuple(names)


class _Arrays:
    """The arrays of a file. `headers`: {name: (shape, dtype)}. Images are loaded when the first of them is read."""

    def __init__(self, file):
        self.file, self.headers, self._loaded, self._lock = file, {}, {}, threading.Lock()
        try:
            with zipfile.ZipFile(file) as members:
                for info in members.infolist():
                    if info.filename.endswith(".npy"):
                        with members.open(info) as member:
                            self.headers[info.filename.removesuffix(".npy")] = _header(member, info)
        except Exception as error:  # zipfile and NumPy raise errors of a dozen types for damaged, encrypted or malicious files
            raise UnusableError(f"{file}: is no .npz file or damaged ({error}); {WANTED}") from None
        if pickled := [name for name, (_, dtype) in self.headers.items() if dtype.hasobject]:
            raise UnusableError(f"{file}: the array {pickled[0]} is pickled, and is not opened, because a pickle can run any "
                                "program; save it as a plain array of numbers or texts")

    def load(self, name):
        """A whole array; read-only. Raises UnusableError if it is damaged or larger than the free memory."""
        with self._lock:
            if name not in self._loaded:
                shape, dtype = self.headers[name]
                gigabytes, free = math.prod(shape) * dtype.itemsize / 1e9, free_gigabytes()
                if gigabytes > free:  # a compressed array can be a thousand times as large as the file
                    sizes = f"takes {gigabytes:.3g} GB, {free:.3g} GB of memory are free"
                    raise UnusableError(f"{self.file}: the array {name} {sizes}; give the images as files, folder: or tfrecord:")
                try:
                    with np.load(self.file, allow_pickle=False) as members:
                        self._loaded[name] = members[name]
                except Exception as error:  # see __init__
                    raise UnusableError(f"{self.file}: the array {name} is damaged ({error}); copy the file again") from None
            return self._loaded[name]

    def read(self, image):
        """A scalar string tensor, such as "x_train 17" -> the image as a BMP file."""
        def encode(text):
            text = text if isinstance(text, bytes) else text.item()  # outside a graph it is an array
            name, row = text.decode().split(" ")
            return _encode_bmp(self.load(name)[int(row)])

        return tf.ensure_shape(tf.numpy_function(encode, [image], tf.string, stateful=False), [])


def _encode_bmp(image):
    """uint8 [height, width] or [height, width, 1, 3 or 4] as a BMP file. BMP is lossless and much faster than PNG."""
    channels = image[..., np.newaxis] if image.ndim == 2 else image[..., 2::-1]  # blue comes first
    height, width = image.shape[:2]
    rows = np.zeros((height, (width * 3 + 3) // 4 * 4), np.uint8)  # the bytes of a row are a multiple of four
    rows[:, : width * 3] = np.broadcast_to(channels, (height, width, 3)).reshape(height, -1)
    # The negative height means that the first row is the top one.
    info = struct.pack("<IiiHHIIiiII", 40, width, -height, 1, 24, 0, rows.size, 0, 0, 0, 0)
    return struct.pack("<2sIHHI", b"BM", 54 + rows.size, 0, 0, 54) + info + rows.tobytes()


def _header(member, info):
    start = io.BytesIO(member.read(_LONGEST_HEADER))  # not more, although the header may claim to be gigabytes long
    version = np.lib.format.read_magic(start)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(start)
    claimed, stored = math.prod(shape) * dtype.itemsize, info.file_size - start.tell()
    if min(shape, default=0) < 0 or (not dtype.hasobject and stored != claimed):
        raise ValueError(f"{info.filename} is {list(shape)}, {claimed} bytes, and contains {stored}")
    return shape, dtype


def _labels(arrays, split):
    """The labels of a split. Raises UnusableError if the headers of its arrays cannot be those of images and labels."""
    shape, dtype = arrays.headers[f"x_{split}"]
    if dtype != np.uint8 or len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3, 4)):
        text = f"{arrays.file}: the array x_{split} is {dtype} {list(shape)}; images must be uint8 [n, height, width] or "
        raise UnusableError(text + "[n, height, width, 1, 3 or 4], 0 to 255")
    if shape[0] and not shape[1] * shape[2]:
        raise UnusableError(f"{arrays.file}: the images of the array x_{split} have no pixel, {list(shape)}; save them again")
    count, (shape, dtype) = shape[0], arrays.headers[f"y_{split}"]
    if shape not in ((count,), (count, 1)) or dtype.kind not in "iu":
        text = f"{arrays.file}: y_{split} is {dtype} {list(shape)}, for {count} images"
        raise UnusableError(f"{text}; labels must be whole numbers, one per image, counted from 0")
    return arrays.load(f"y_{split}").reshape(-1).astype(np.int64).tolist()
