"""--dataset=tfrecord:PATTERN, files of serialized tf.train.Examples, and the function that writes them."""

import dataclasses
import os
import pathlib
import re
import struct
import sys

import numpy as np
import tensorflow as tf

from input_pipeline.common.batches import without_autotune
from input_pipeline.common.errors import UnusableError
from input_pipeline.common.own_files import CLASS_NAMES, fitting
from input_pipeline.common.small_files import read_file
from input_pipeline.images import headers
from input_pipeline.images.bad_examples import BadExamples
from input_pipeline.sources.base import RecordFiles, Stretch, slices
from input_pipeline.sources.folder import WITHOUT_SPLITS
from input_pipeline.sources.listed import count_classes

FEATURES = {"image": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)}
_SPLIT = re.compile(r"(?<![a-z])(train|validation|val|test)(?![a-z])")
LARGEST_RECORD = 2**29  # bytes
_SIZE_CHECKED = 16  # images at the beginning of each file


@dataclasses.dataclass(frozen=True, eq=False)
class TfrecordSource(RecordFiles):
    """A source of TFRecord files.

    Attributes:
      files: {name of a split: [(file, how many records it has)]}.
    """

    files: dict

    def split_sizes(self):
        """{name of a split: how many examples it has}."""
        return {name: sum(count for _, count in files) for name, files in self.files.items()}

    def stretches(self, split):
        """The Stretches of files that make up `split`."""
        found = []
        for name, start, stop in slices(split, self.split_sizes()):
            if stop <= start:
                found.append(Stretch(self.files[name][0][0], 0, stop - start))  # which `num_examples` refuses
            first = 0
            for file, count in self.files[name]:
                low, high = max(start, first), min(stop, first + count)
                if low < high:
                    found.append(Stretch(file, low - first, high - low))
                first += count
        return found

    def parse(self, record):
        """A serialized example -> {"image": encoded bytes, "label": int64}."""
        return tf.io.parse_single_example(record, FEATURES)


def open_tfrecord(config, pattern):
    """Opens files of tf.train.Examples with the features `image`, one encoded image, and `label`, an int64.

    A file belongs to the split train, validation, val or test that its name holds as a word, such as
    test-00000-of-00004.tfrecord; where no name holds one, all are `train`. The classes' names are the lines of class_names.txt
    beside the files; without it, all labels are read once to count them. The order is that of the sorted names.

    Args:
      config: DataConfig.
      pattern: of local files, with * ? [] and **; may begin with ~. Not compressed.

    Raises:
      UnusableError: a file is no TFRecord file, ends within a record, or belongs to no split where others do.
    """
    paths = fitting(pattern)
    files = {}
    for path in paths:
        word = _SPLIT.search(os.path.basename(path).lower())
        files.setdefault(word[1] if word else "", []).append((path, count_records(path)))
    if "" in files and len(files) > 1:
        remedy = "its name holds none of the words train, validation, val and test, others do; rename it or narrow the pattern"
        raise UnusableError(f"{files[''][0][0]}: {remedy}")
    if "" in files:
        files = {WITHOUT_SPLITS: files[""]}
    names = _class_names(paths)
    bad = BadExamples(config.max_bad_examples)
    return TfrecordSource(config.dataset, names, _common_shape(paths), files, bad=bad)


def write_tfrecords(folder, examples, class_names, split="train", num_files=1):
    """Writes `<split>-00000-of-0000N.tfrecord` files that `--dataset=tfrecord:<folder>/*.tfrecord` reads, and class_names.txt.

    Args:
      folder: made where it is missing.
      examples: iterable of (image, label): encoded bytes or a uint8 array [height, width, 1, 3 or 4], which is stored as PNG;
        an index into class_names. `sources.encoded_examples(source, split)` gives those of any other source.
      class_names: of all classes, the same for every split of a folder.
      split: train, validation, val or test.
      num_files: to spread the examples over, in turns; several are read in parallel.

    Returns:
      The files' paths.

    Raises:
      ValueError: a label is no index into class_names, or the split has another name.
    """
    if not _SPLIT.fullmatch(split):
        raise ValueError(f"split {split!r}: give train, validation, val or test")
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CLASS_NAMES).write_text("".join(f"{name}\n" for name in class_names), encoding="utf-8")
    paths = [folder / f"{split}-{number:05}-of-{num_files:05}.tfrecord" for number in range(num_files)]
    unfinished = [path.with_name(f".{path.name}.unfinished") for path in paths]
    writers = [tf.io.TFRecordWriter(str(path)) for path in unfinished]
    try:
        for position, (image, label) in enumerate(examples):
            if not 0 <= label < len(class_names):
                raise ValueError(f"example {position}: label {label} is no index into the {len(class_names)} class names")
            writers[position % num_files].write(_serialize(image, label))
    finally:
        for writer in writers:
            writer.close()
    for path, written in zip(paths, unfinished, strict=True):
        written.replace(path)
    return paths


def count_records(path):
    """How many records a TFRecord file has, by their lengths alone: 8 bytes length, 4 checksum, the data, 4 checksum.

    Raises:
      UnusableError: it ends within a record, or is no such file.
    """
    count, position = 0, 0
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            while position < size:
                file.seek(position)
                head = file.read(12)
                position += 16 + struct.unpack("<Q4x", head)[0] if len(head) == 12 else size + 1
                if position > size or (len(head) == 12 and struct.unpack("<Q4x", head)[0] > LARGEST_RECORD):
                    remedy = "it is cut off, damaged, compressed or no TFRecord file; copy or write it again"
                    raise UnusableError(f"{path}: ends within record {count}; {remedy}")
                count += 1
    except OSError as error:
        raise UnusableError(f"{path}: cannot be read ({error.strerror}); change its permissions") from None
    return count


def _serialize(image, label):
    encoded = image if isinstance(image, bytes) else tf.io.encode_png(np.asarray(image)).numpy()
    features = {
        "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded])),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[int(label)])),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def _feature(record, name):
    values = tf.train.Example.FromString(record).features.feature[name]
    return (values.bytes_list.value or values.int64_list.value or [None])[0]


def _records(path, count=None):
    """Serialized examples, of the first `count` records; damaged ones are left out, which is told when they are decoded."""
    position, end = 0, count_records(path)
    end = end if count is None else min(count, end)
    while position < end:
        try:
            for record in without_autotune(tf.data.TFRecordDataset(path).skip(position).take(end - position)).as_numpy_iterator():
                position += 1
                yield record
        except tf.errors.OpError:
            position += 1


def _class_names(paths):
    listed = {os.path.join(os.path.dirname(path), CLASS_NAMES) for path in paths}
    there = [path for path in sorted(listed) if os.path.isfile(path)]
    if there:
        try:
            names = tuple(read_file(there[0]).decode("utf-8-sig").rstrip().splitlines())
        except (OSError, ValueError) as error:
            raise UnusableError(f"{there[0]}: cannot be read ({error}); write the name of a class on each line") from None
        if names:
            return names
        raise UnusableError(f"{there[0]}: is empty; write the name of a class on each line, or remove it")
    print(f"counting classes in {len(paths)} files; a {CLASS_NAMES} beside them, one name a line, saves that", file=sys.stderr)
    labels = set()
    for path in paths:
        for record in _records(path):
            try:
                labels.add(int(_feature(record, "label")))
            except Exception:  # protobuf's own, or no number; told when the record is decoded
                continue
    return tuple(str(number) for number in range(count_classes(labels)))


def _common_shape(paths):
    """(height, width, 3) where the first images of all files have one size, else None."""
    sizes = set()
    for path in paths:
        for record in _records(path, _SIZE_CHECKED):
            try:
                size = headers.usable_size(headers.io.BytesIO(_feature(record, "image")))
            except Exception:  # as above
                continue
            sizes |= {size} if size else set()
            if len(sizes) > 1:
                return None
    return (*sizes.pop(), 3) if sizes else None
