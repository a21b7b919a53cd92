"""The interface of a source, and the source whose examples are records of TFRecord files (TFDS and --dataset=tfrecord:)."""

import abc
import dataclasses
import math
import os
import re
import time
import types
from collections.abc import Callable

import tensorflow as tf
import tensorflow_datasets as tfds

from input_pipeline.common.batches import without_autotune
from input_pipeline.common.errors import SettingError, UnusableError, one_line_of
from input_pipeline.images.loading import BadExamples

PARALLEL_READS = 4  # encoded images are small; more readers than this only compete for the same disk
READ_BLOCK = 16  # consecutive records from one file, TFDS's own default
WITHOUT_SPLITS = "train"  # the name of the only split of a source that is not divided into splits


@dataclasses.dataclass(frozen=True)
class Source(abc.ABC):
    """A data set: splits of examples. Each example is an encoded image and a label.

    `name` is the value of --dataset, `class_names` are in the order of the labels, and `image_shape` is (height, width, 3) if all
    images have the same size. `bad` has the examples that could not be used, and `faults` says why a whole split cannot be used,
    {name of a split: reason and remedy}; it matters only if the split is used. `notes` are lines for the user about what is not
    read. A subclass also has `parse`: a serialized example (a scalar string tensor) -> {"image": encoded bytes, "label": int64}.
    """

    name: str
    class_names: tuple
    image_shape: tuple | None
    bad: BadExamples = dataclasses.field(default_factory=BadExamples, kw_only=True, compare=False)
    faults: dict = dataclasses.field(default_factory=dict, kw_only=True, compare=False)
    notes: tuple = dataclasses.field(default=(), kw_only=True, compare=False)

    def num_examples(self, split, flag):
        """How many examples `split` has. Raises SettingError, which names `flag`, if the split does not exist or is empty.

        Raises UnusableError if it has one of the `faults`, or its files contain no example.
        """
        for name in re.sub(r"\[[^]]*\]", "", split).split("+"):
            if name in self.faults:
                raise UnusableError(f"--{flag}={split}: {self.faults[name]}")
        try:
            slices = self._slices(split)
        except (KeyError, ValueError, AssertionError, AttributeError, NotImplementedError) as error:
            existing = ", ".join(f"{name} ({count})" for name, count in self.split_sizes().items())
            remedy = f"{self.name} has no such split ({one_line_of(error)}); it has {existing}; slices look like train[:90%]"
            raise SettingError(flag, split, remedy) from None
        sizes, takes = self.split_sizes(), [stop - start for _, start, stop in slices]
        for name in (name for name, _, _ in slices if not sizes[name]):
            raise UnusableError(f"--{flag}={split}: {self.name} has no example in {name} ({first_of(self.files_of(name))}); "
                                "give files that contain examples, or another split")
        if not takes or min(takes) < 1:  # TFDS counts train[90%:10%] as a negative number of examples
            raise SettingError(flag, split, f"contains no example of {self.name}, or ends before it begins; give a larger slice")
        return sum(takes)

    def _slices(self, split):
        """[(name of a split, first example, example after the last)] of train[:90%]+test[10:20]; raises what TFDS raises."""
        sizes = self.split_sizes()
        parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(self._split_infos())
        return [(part.splitname, part.from_ or 0, sizes[part.splitname] if part.to is None else part.to) for part in parts]

    def _split_infos(self):
        """{name of a split: what TFDS must know to slice it}."""
        return {name: types.SimpleNamespace(num_examples=count) for name, count in self.split_sizes().items()}

    @abc.abstractmethod
    def split_sizes(self):
        """{name of a split: how many examples it has}."""

    @abc.abstractmethod
    def files_of(self, split):
        """The files or the folder that contain the examples of a split, which is no slice; a list for error messages."""

    @abc.abstractmethod
    def records(self, split):
        """A finite Dataset of (number for `where`, int64; serialized example), always in the same order."""

    @abc.abstractmethod
    def shuffled_records(self, split, seed, epoch, buffer_size):
        """`records` in an order that is a function of (seed, epoch), both integers or int64 scalar tensors."""

    @abc.abstractmethod
    def where(self, split, number):
        """The file that contains an example, and its row or record if the file has several; a text for error messages."""

    @abc.abstractmethod
    def fingerprint(self, split):
        """A dict for JSON that changes if the examples of `split` change. Its "place" is the file or folder of the data.

        Raises UnusableError if a file is missing.
        """

    def skip_damaged(self, split, seconds=math.inf):  # noqa: B027, only record files can have damaged records
        """Finds records of `split` that cannot be read, and leaves them out from now on; starts no file after `seconds`.

        Raises UnusableError if there are more than `bad` allows.
        """


def first_of(names, most=5):
    """The first of some names as a text for a message, with "..." for the others."""
    names = list(names)
    return ", ".join(map(str, names[:most])) + ", ..." * (len(names) > most)


def file_state(name):
    """(size in bytes, time of the last change in ns) of a file, which may be on a remote file system."""
    try:
        local = os.stat(name)
        return local.st_size, local.st_mtime_ns
    except OSError:  # gfile can read remote files, but rounds their times to whole seconds
        remote = tf.io.gfile.stat(name)
        return remote.length, remote.mtime_nsec


def read_records(file, first, end):
    """Yields (number, record, "") for the records of a TFRecord file, and (number, None, what is wrong) for damaged ones."""
    while first < end:
        try:
            for record in without_autotune(tf.data.TFRecordDataset(file).skip(first).take(end - first)).as_numpy_iterator():
                yield first, record, ""
                first += 1
            return
        except tf.errors.OpError as error:
            yield first, None, one_line_of(error)
            first += 1


def shuffle_seeds(seed, epoch):
    """Two int64 seeds for the order of an epoch. They never equal the keys of the augmentation, (seed, position >= 0)."""
    key = tf.stack([tf.cast(seed, tf.int64), -1 - tf.cast(epoch, tf.int64)])
    return tf.random.stateless_uniform([2], key, minval=None, maxval=None, dtype=tf.int64)


@dataclasses.dataclass(frozen=True, eq=False)
class RecordFiles(Source):
    """A source whose examples are records of TFRecord files. `files`: {name of a split: [(file, how many records it has)]}."""

    files: dict
    parse: Callable
    _damaged: set = dataclasses.field(default_factory=set, kw_only=True, repr=False)  # (file, record)

    def num_examples(self, split, flag):
        """How many examples `split` has, without those that `skip_damaged` found. Raises SettingError as Source does."""
        return super().num_examples(split, flag) and sum(take for _, _, take, _ in self._parts(split))

    def split_sizes(self):
        return {name: sum(count for _, count in files) for name, files in self.files.items()}

    def files_of(self, split):
        return [file for file, _ in self.files[split]]

    def _split_infos(self):  # with the lengths of the shards, TFDS also accepts train[:1shard]
        return {name: types.SimpleNamespace(num_examples=count, shard_lengths=[length for _, length in self.files[name]])
                for name, count in self.split_sizes().items()}

    def records(self, split, seed=None):
        """See Source. With a `seed`, the files are shuffled."""
        parts = self._existing_parts(split)
        names, *numbers = zip(*parts, strict=True)
        files = tf.data.Dataset.from_tensor_slices((list(names), *(tf.constant(column, tf.int64) for column in numbers)))
        if seed is not None:
            files = files.shuffle(len(parts), seed=seed, reshuffle_each_iteration=False)
        records = files.interleave(
            lambda name, skip, take, number: tf.data.TFRecordDataset(name).skip(skip).take(take).enumerate(number),
            cycle_length=PARALLEL_READS, block_length=READ_BLOCK, num_parallel_calls=PARALLEL_READS, deterministic=True)
        # With this, a shortened file is an error. Without it, the epoch would have fewer examples than its steps need.
        return records.apply(tf.data.experimental.assert_cardinality(sum(take for _, _, take, _ in parts)))

    def shuffled_records(self, split, seed, epoch, buffer_size):
        """See Source. Shuffles the files, and then the records through a buffer of `buffer_size`."""
        # Dataset.shuffle mixes in the graph's seed. The order must not depend on what a caller gave to tf.random.set_seed.
        tf.compat.v1.get_default_graph().seed = None
        of_files, of_records = tf.unstack(shuffle_seeds(seed, epoch))
        return self.records(split, of_files).shuffle(buffer_size, seed=of_records, reshuffle_each_iteration=False)

    def where(self, split, number):
        return next(f"{file} record {skip + number - first}" for file, skip, take, first in self._parts(split)
                    if first <= number < first + take)

    def fingerprint(self, split):
        parts = self._existing_parts(split)
        place = os.path.dirname(os.path.abspath(parts[0][0]))
        files = [[os.path.basename(file), skip, take, *file_state(file)] for file, skip, take, _ in parts]
        return {"place": place, "classes": list(self.class_names), "files": files}

    def skip_damaged(self, split, seconds=math.inf):
        """Reads all records of `split`, decodes none, and leaves out those with a wrong checksum from now on."""
        start = time.monotonic()
        for file, skip, take, _ in self._parts(split):
            if time.monotonic() - start > seconds:
                return
            done, before, remedy = skip, "", "prepare or copy this file again"
            for number, _, damage in read_records(file, skip, skip + take):
                done = number + 1
                if not damage:
                    continue
                if damage == before:  # at the same byte again: the length is wrong, so the next record cannot be found
                    wrong = "is damaged in its length, and what follows cannot be read"
                    raise UnusableError(f"{file} record {number - 1}: {wrong}; {remedy}")
                before = damage
                self.bad.add(f"{file} record {number}", f"is damaged ({damage})", remedy)
                self._damaged.add((file, number))
            if done < skip + take:
                raise UnusableError(f"{file}: ends after {done} records, {skip + take} are wanted; {remedy}")
        if not self._parts(split):
            raise UnusableError(f"{self.name}: every record of {split} is damaged; prepare or copy its files again")

    def _parts(self, split):
        """The parts of files that make up `split`, cut around damaged records.

        A part is (file, skip, take, number): `take` records after the first `skip`; the first one has that number in the split.
        """
        parts, number = [], 0
        for name, start, stop in self._slices(split):
            first = 0  # the file's first record, counted from the beginning of the split
            for file, count in self.files[name]:
                low, high = max(start - first, 0), min(stop - first, count)
                damaged = sorted(record for path, record in self._damaged if path == file and low <= record < high)
                for begin, end in zip([low, *(record + 1 for record in damaged)], [*damaged, high], strict=True):
                    if begin < end:
                        parts.append((file, begin, end - begin, number + begin - low))
                first, number = first + count, number + max(high - low, 0)
        return parts

    def _existing_parts(self, split):
        parts = self._parts(split)
        for file, *_ in parts:
            if not tf.io.gfile.exists(file):
                raise UnusableError(f"{file}: this file of {self.name} is missing; copy it there or prepare the data again")
        return parts
