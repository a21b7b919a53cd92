"""--dataset=tfrecord:PATTERN, files of serialized tf.train.Examples, and the function that writes them."""

import functools
import io
import itertools
import os
import pathlib
import re
import sys
import unicodedata

import numpy as np
import tensorflow as tf

from input_pipeline.common.batches import without_autotune
from input_pipeline.common.errors import UnusableError
from input_pipeline.common.small_files import read_file
from input_pipeline.config import CLASS_NAMES, matching_files
from input_pipeline.images import headers
from input_pipeline.sources.base import WITHOUT_SPLITS, RecordFiles, read_records
from input_pipeline.sources.labels import check_labels, numbered_classes

# The features (image, label), one encoded image and one int64, as `write_tfrecords` names them and as TF-Slim does.
LAYOUTS = (("image", "label"), ("image/encoded", "image/class/label"))
_KINDS = {"bytes_list": "bytes", "int64_list": "int64", "float_list": "float"}
_IN_WORDS = {"bytes": "a text (bytes)", "int64": "a whole number (int64)", "float": "a decimal number (float)"}
_SPLIT = re.compile(r"(?<![a-z])(train|validation|val|test)(?![a-z])")
_LIKE_SPLIT = re.compile(r"(?<![a-z])(training|valid|dev|testing|eval|evaluation)(?![a-z])")
_SHARD = re.compile(r"(.*)-(\d+)-of-(\d+)(.*)", re.DOTALL)
LARGEST_RECORD = 2**29  # bytes
_CHECKED = 16  # how many records of each file are checked for their features and the size of the image
_MOST_SHOWN = 12  # features in a message
_REMEDY = "write the files with input_pipeline.sources.tfrecord.write_tfrecords"


def open_source(config, pattern, bad):
    """Opens files of tf.train.Examples with the features `image`, one encoded image, and `label`, an int64.

    Instead, the features may be `image/encoded` and `image/class/label`. A file belongs to the split train, validation, val or
    test if its name contains that word, such as test-00000-of-00004.tfrecord. If no name contains one, all files are `train`. The
    lines of class_names.txt in the same folder name the classes. Without it, all labels are read once to count them. The examples
    are in the order of the sorted file names. The files are local and not compressed; the pattern may contain * ? [] and **.
    Raises UnusableError if a file is no TFRecord file, ends within a record, has other features, or belongs to no split although
    others do, and if a file of a set such as 00001-of-00004 is missing.
    """
    paths = matching_files(pattern)
    splits = _splits(paths)
    _check_shards(paths)
    files = {split: [(path, _count_records(path)) for path in part] for split, part in splits.items()}
    faults = {split: _empty(part) for split, part in files.items() if not any(count for _, count in part)}
    if len(faults) == len(files):
        raise UnusableError(next(iter(faults.values())))
    every = [file for part in files.values() for file in part]
    image, label = _layout(every)
    parse = functools.partial(_parse, image=image, label=label)
    images = (content for path, count in every for _, record, damage in read_records(path, 0, min(count, _CHECKED))
              if not damage and (features := _features_of(record)) for content in features[image].bytes_list.value[:1])
    shape = headers.common_shape(functools.partial(io.BytesIO, content) for content in images)
    names = _listed_names(every)
    if not names:
        names, more = _counted_names(config.dataset, files, label)
        faults |= more
    return RecordFiles(config.dataset, names, shape, files, parse, bad=bad, faults=faults)


def write_tfrecords(folder, examples, class_names, split="train", num_files=1):
    """Writes `<split>-00000-of-0000N.tfrecord` files that `--dataset=tfrecord:<folder>/*.tfrecord` reads, and class_names.txt.

    Creates the folder if necessary, distributes the examples over `num_files` in turns, and returns the files' paths. `examples`
    is an iterable of (image, label), such as `encoded_examples` of any source. An image is encoded bytes, or a uint8 array
    [height, width, 1, 3 or 4], which is stored as PNG. A label is an index into `class_names`, those of all splits in the
    folder. Raises ValueError if a label is no such index, if `class_names` has an empty or repeated name, or if `split` is not
    train, validation, val or test.
    """
    if not _SPLIT.fullmatch(split):
        raise ValueError(f"split {split!r}: give train, validation, val or test")
    if wrong := _wrong_name(class_names):
        raise ValueError(f"class {wrong[0] - 1}: its name {wrong[1]}, as a line of {CLASS_NAMES}")
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


def _splits(paths):
    """{split: its files}. Raises UnusableError if some names say to which split they belong, and others do not."""
    files = {}
    for path in paths:
        word = _SPLIT.search(os.path.basename(path).lower())
        files.setdefault(word[1] if word else "", []).append(path)
    if "" in files and len(files) > 1:
        remedy = "its name holds none of the words train, validation, val and test, others do; rename it or narrow the pattern"
        raise UnusableError(f"{files[''][0]}: {remedy}")
    words = {match[1]: path for path in files.get("", ()) if (match := _LIKE_SPLIT.search(os.path.basename(path).lower()))}
    if len(words) > 1:  # all files would be one split, on which the network would be trained and tested
        raise UnusableError(f"{words[min(words)]}: its name holds {min(words)}, others hold {max(words)}; the words for splits "
                            "are train, validation, val and test: rename the files or narrow the pattern")
    return {split or WITHOUT_SPLITS: part for split, part in files.items()}


def _check_shards(paths):
    """Raises UnusableError if a file of a set NAME-00000-of-00004... does not exist; reports what the pattern leaves out."""
    sets, totals = {}, {}
    for path in paths:
        if match := _SHARD.fullmatch(os.path.basename(path)):
            before, number, total, after = match.groups()
            before = os.path.join(os.path.dirname(path), before)
            sets.setdefault((before, total, after), {})[int(number)] = len(number)
            totals.setdefault((before, after), {})[total] = path
    for (before, total, after), numbers in sets.items():
        first = 1 if int(total) in numbers and 0 not in numbers else 0  # some programs count from 1
        wanted = range(first, min(int(total), 10**6) + first)
        absent = [f"{before}-{number:0{min(numbers.values())}}-of-{total}{after}" for number in wanted if number not in numbers]
        if missing := [path for path in absent if not os.path.isfile(path)]:
            more = f", and {len(missing) - 1} more of this set of {int(total)} files" if len(missing) > 1 else ""
            raise UnusableError(f"{missing[0]}: is missing{more}; copy or write it again")
        if max(numbers) not in wanted:
            path = f"{before}-{max(numbers):0{min(numbers.values())}}-of-{total}{after}"
            raise UnusableError(f"{path}: cannot belong to a set of {int(total)} files; remove it or narrow the pattern")
        if absent:
            print(f"the pattern leaves out {len(absent)} of {int(total)} files, such as {absent[0]}", file=sys.stderr)
    for found in totals.values():
        if len(found) > 1:
            print(f"{' and '.join(list(found.values())[:2])} are of two sets with the same name; both are read", file=sys.stderr)


def _empty(files):
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return f"{files[0][0]}{more}: no record in {'them' if more else 'it'}; copy or write {'them' if more else 'it'} again"


def _parse(record, image, label):
    """A serialized example -> {"image": encoded bytes, "label": int64}. `image` and `label` are the names of the features."""
    wanted = {image: tf.io.FixedLenFeature([], tf.string), label: tf.io.FixedLenFeature([], tf.int64)}
    features = tf.io.parse_single_example(record, wanted)
    return {"image": features[image], "label": features[label]}


def _layout(files):
    """Which of LAYOUTS the files have. Raises UnusableError if the records at the beginning of a file have none, or another.

    Damaged records, and those without any feature, say nothing about the file; decoding will report them.
    """
    known = {}
    for path, count in files:
        first = _first_features(path, count)
        if layout := next((layout for each in first for layout in LAYOUTS if _fits(each, layout)), None):
            known.setdefault(layout, path)
            continue
        intact = [(number, record) for number, record, damage in read_records(path, 0, min(count, _CHECKED)) if not damage]
        parsed = [(number, features) for number, record in intact if (features := _features_of(record)) is not None]
        if wrong := next((pair for pair in parsed if pair[1]), None):
            raise UnusableError(f"{path} record {wrong[0]}: {_what_is_wrong(wrong[1])}")
        if intact and not parsed:
            raise UnusableError(f"{path} record {intact[0][0]}: is no tf.train.Example, nor are those that follow; {_REMEDY}")
    if len(known) > 1:
        (one, path), (other, second) = known.items()
        raise UnusableError(f"{second}: has the feature {other[0]}, and {path} has {one[0]}; write all files in one way")
    return next(iter(known), LAYOUTS[0])


def _kind(features, name):
    """What a feature is, such as bytes, int64 or, for a list, 3 float."""
    kind = features[name].WhichOneof("kind") if name in features else None
    if not kind:
        return "empty" if name in features else "missing"
    count = len(getattr(features[name], kind).value)
    return _KINDS[kind] if count == 1 else f"{count} {_KINDS[kind]}"


def _fits(features, layout):
    return (_kind(features, layout[0]), _kind(features, layout[1])) == ("bytes", "int64")


def _what_is_wrong(features):
    """Why the features of a record are not those of an image and a label, and what is needed."""
    for layout in LAYOUTS:
        if all(name in features for name in layout):
            name, wanted = layout[0], "one encoded image (bytes)"
            if _kind(features, name) == "bytes":
                name, wanted = layout[1], "the number of one class (one int64), counted from 0"
            found = _kind(features, name)
            return f"has the feature {name} as {_IN_WORDS.get(found, found)}, where {wanted} is needed; {_REMEDY}"
    every = [f"{name} ({_kind(features, name)})" for name in sorted(features)]
    shown = ", ".join(every[:_MOST_SHOWN]) + (f" and {len(every) - _MOST_SHOWN} more" if len(every) > _MOST_SHOWN else "")
    wanted = " or ".join(f"{image} (bytes, one encoded image) and {label} (int64)" for image, label in LAYOUTS)
    return f"has the features {shown}; needed are {wanted}: {_REMEDY}"


def _first_features(path, count):
    """Yields the features of the first records of a file. Faster than `read_records`, and does not look at checksums."""
    with open(path, "rb") as file:
        for _ in range(min(count, _CHECKED)):
            length = int.from_bytes(file.read(12)[:8], "little")
            if features := _features_of(file.read(length)):
                yield features
            file.seek(4, os.SEEK_CUR)


def _features_of(record):
    """{name: feature} of a serialized tf.train.Example; None if it is none."""
    try:
        return tf.train.Example.FromString(record).features.feature
    except Exception:  # the protobuf package has several implementations, which raise different errors
        return None


def _listed_names(files):
    """The names of the classes in class_names.txt beside the files; empty if there is none."""
    listed = {os.path.join(os.path.dirname(path), CLASS_NAMES) for path, _ in files}
    names = {path: _names_in(path) for path in sorted(listed) if os.path.isfile(path)}
    for path, found in names.items():
        if found != (first := next(iter(names.values()))):
            number = next(number for number, pair in enumerate(itertools.zip_longest(first, found), 1) if len(set(pair)) > 1)
            raise UnusableError(f"{path} line {number}: is not as in {next(iter(names))}; all files must have the same classes")
    return next(iter(names.values()), ())


def _names_in(path):
    remedy = "write the name of a class on each line, in UTF-8, or remove the file"
    try:
        text = read_file(path).decode("utf-8-sig").rstrip()
    except (OSError, ValueError) as error:
        raise UnusableError(f"{path}: cannot be used ({error}); {remedy}") from None
    if not text:
        raise UnusableError(f"{path}: cannot be used (is empty); {remedy}")
    names = tuple(re.split("\r\n|\r|\n", text))
    if wrong := _wrong_name(names):
        raise UnusableError(f"{path} line {wrong[0]}: {wrong[1]}; each line is the name of one class, the first one of label 0")
    return names


def _wrong_name(names):
    """(its number, counted from 1; what is wrong) of the first name that cannot be a line of class_names.txt; None if all can."""
    lines = {}
    for number, name in enumerate(names, 1):
        if not name.strip():
            return number, "is empty"
        other = lines.setdefault(unicodedata.normalize("NFC", name.strip()), number)
        if other != number:
            return number, f"repeats the name {name.strip()} of line {other}"
        if re.search("[\r\n]", name):
            return number, "contains a line break"
    return None


def _counted_names(dataset, files, label):
    """(names, faults) of classes that are only numbered, from the labels of all records."""
    count = sum(len(part) for part in files.values())
    print(f"counting classes in {count} files; a {CLASS_NAMES} beside them, one name per line, saves that", file=sys.stderr)
    labels = {split: [value for path, records in part for value in _labels_in(path, records, label)]
              for split, part in files.items()}
    names = numbered_classes(value for part in labels.values() for value in part)
    remedy = f"write a {CLASS_NAMES} beside the files, whose first line is the name of label 0"
    return names, check_labels(dataset, labels, len(names), remedy) if any(labels.values()) else {}


def _labels_in(path, count, label):
    """Yields the labels of a file, except those of damaged records, which decoding will report."""
    before = ""
    for number, record, damage in read_records(path, 0, count):
        if damage and damage == before:  # at the same byte again: the length is wrong, so the next record cannot be found
            wrong = "is damaged in its length, and the classes that follow cannot be counted; prepare or copy this file again"
            raise UnusableError(f"{path} record {number - 1}: {wrong}")
        before = damage
        if not damage and (features := _features_of(record)):
            yield from features[label].int64_list.value[:1]
