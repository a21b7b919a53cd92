"""--dataset=tfrecord:PATTERN, files of serialized tf.train.Examples, and the function that writes them."""

import contextlib
import functools
import io
import os
import pathlib
import re
import sys

import numpy as np
import tensorflow as tf

from input_pipeline.common.batches import without_autotune
from input_pipeline.common.errors import UnusableError
from input_pipeline.common.small_files import read_file
from input_pipeline.config import CLASS_NAMES, matching_files
from input_pipeline.images import headers
from input_pipeline.sources.base import WITHOUT_SPLITS, RecordFiles, read_records
from input_pipeline.sources.labels import numbered_classes

FEATURES = {"image": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)}
_SPLIT = re.compile(r"(?<![a-z])(train|validation|val|test)(?![a-z])")
LARGEST_RECORD = 2**29  # bytes
_CHECKED = 16  # how many images of each file are checked for their size


def open_source(config, pattern, bad):
    """Opens files of tf.train.Examples with the features `image`, one encoded image, and `label`, an int64.

    A file belongs to the split train, validation, val or test if its name contains that word, such as
    test-00000-of-00004.tfrecord. If no name contains one, all files are `train`. The lines of class_names.txt in the same folder
    name the classes. Without it, all labels are read once to count them. The examples are in the order of the sorted file names.
    The files are local and not compressed; the pattern may contain * ? [] and **. Raises UnusableError if a file is no TFRecord
    file, ends within a record, or belongs to no split although others do.
    """
    files = {}
    for path in matching_files(pattern):
        word = _SPLIT.search(os.path.basename(path).lower())
        files.setdefault(word[1] if word else "", []).append((path, _count_records(path)))
    if "" in files and len(files) > 1:
        remedy = "its name holds none of the words train, validation, val and test, others do; rename it or narrow the pattern"
        raise UnusableError(f"{files[''][0][0]}: {remedy}")
    files = {split or WITHOUT_SPLITS: part for split, part in files.items()}
    parse = functools.partial(tf.io.parse_single_example, features=FEATURES)
    every = [file for part in files.values() for file in part]
    images = (image for features in _features(every, _CHECKED) for image in features["image"].bytes_list.value[:1])
    shape = headers.common_shape(functools.partial(io.BytesIO, image) for image in images)
    return RecordFiles(config.dataset, _class_names(every), shape, files, parse, bad=bad)


def write_tfrecords(folder, examples, class_names, split="train", num_files=1):
    """Writes `<split>-00000-of-0000N.tfrecord` files that `--dataset=tfrecord:<folder>/*.tfrecord` reads, and class_names.txt.

    Creates the folder if necessary, distributes the examples over `num_files` in turns, and returns the files' paths. `examples`
    is an iterable of (image, label), such as `encoded_examples` of any source. An image is encoded bytes, or a uint8 array
    [height, width, 1, 3 or 4], which is stored as PNG. A label is an index into `class_names`, those of all splits in the
    folder. Raises ValueError if a label is no such index, or `split` is not train, validation, val or test.
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
            encoded = image if isinstance(image, bytes) else tf.io.encode_png(np.asarray(image)).numpy()
            features = {"image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded])),
                        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[int(label)]))}
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writers[position % num_files].write(example.SerializeToString())
    finally:
        for writer in writers:
            writer.close()
    for path, written in zip(paths, unfinished, strict=True):
        written.replace(path)
    return paths


def encoded_examples(source, split):
    """Yields (encoded image bytes, label) of a split of any Source, for `write_tfrecords`."""
    for _, record in without_autotune(source.records(split)):
        example = source.parse(record)
        yield example["image"].numpy(), int(example["label"])


def _count_records(path):
    """How many records a TFRecord file has. Reads only their lengths: 8 bytes length, 4 checksum, the data, 4 checksum."""
    count, position = 0, 0
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            while position < size:
                file.seek(position)
                length = int.from_bytes(file.read(8), "little")
                position += 16 + length
                if position > size or length > LARGEST_RECORD:
                    remedy = "it is cut off, damaged, compressed or no TFRecord file; copy or write it again"
                    raise UnusableError(f"{path}: ends within record {count}; {remedy}")
                count += 1
    except OSError as error:
        raise UnusableError(f"{path}: cannot be read ({error.strerror}); change its permissions") from None
    return count


def _class_names(files):
    listed = {os.path.join(os.path.dirname(path), CLASS_NAMES) for path, _ in files}
    if found := [path for path in sorted(listed) if os.path.isfile(path)]:
        try:
            if names := tuple(read_file(found[0]).decode("utf-8-sig").rstrip().splitlines()):
                return names
            raise ValueError("is empty")
        except (OSError, ValueError) as error:
            remedy = "write the name of a class on each line, or remove it"
            raise UnusableError(f"{found[0]}: cannot be used ({error}); {remedy}") from None
    print(f"counting classes in {len(files)} files; a {CLASS_NAMES} beside them, one name per line, saves that", file=sys.stderr)
    return numbered_classes(label for features in _features(files) for label in features["label"].int64_list.value[:1])


def _features(files, most=sys.maxsize):
    """Yields the features of the first `most` records of each file, except damaged records, which decoding will report."""
    for path, count in files:
        for _, record, damage in read_records(path, 0, min(most, count)):
            with contextlib.suppress(Exception):
                if not damage:
                    yield tf.train.Example.FromString(record).features.feature
