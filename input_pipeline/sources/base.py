"""What every source of examples offers, and what those that read record files share."""

import abc
import dataclasses
import math
import os
import time
from typing import NamedTuple

import tensorflow as tf
import tensorflow_datasets as tfds

from input_pipeline.common.batches import without_autotune
from input_pipeline.common.errors import SettingError, UnusableError, one_line_of
from input_pipeline.images.bad_examples import BadExamples

# Encoded images are small; more readers than this only compete for the same disk.
PARALLEL_READS = 4
READ_BLOCK = 16  # records in a row from one file, TFDS's own default


@dataclasses.dataclass(frozen=True)
class Source(abc.ABC):
    """A data set: splits of examples, each an encoded image and a label.

    Attributes:
      name: as given to --dataset.
      class_names: one per label, in the order of the labels.
      image_shape: (height, width, 3) where all images have one size, else None.
      bad: the examples that turned out to be of no use.
    """

    name: str
    class_names: tuple
    image_shape: tuple | None
    bad: BadExamples = dataclasses.field(default_factory=BadExamples, kw_only=True, compare=False)

    def num_examples(self, split, flag):
        """How many examples `split` has. Raises SettingError, naming `flag`, for a split that does not exist or is empty."""
        try:
            takes = self._takes(split)
        except (KeyError, ValueError, AssertionError, AttributeError, NotImplementedError) as error:
            there = ", ".join(f"{name} ({count})" for name, count in self.split_sizes().items())
            remedy = f"{self.name} has no such split ({one_line_of(error)}); it has {there}; slices look like train[:90%]"
            raise SettingError(flag, split, remedy) from None
        if not takes or min(takes) < 1:  # TFDS counts train[90%:10%] as a negative number of examples
            raise SettingError(flag, split, f"holds no example of {self.name}, or ends before it begins; give a larger slice")
        return sum(takes)

    @abc.abstractmethod
    def split_sizes(self):
        """{name of a split: how many examples it has}."""

    @abc.abstractmethod
    def _takes(self, split):
        """How many examples each part of `split` has. Raises ValueError where it cannot be read."""

    @abc.abstractmethod
    def records(self, split):
        """A finite Dataset of serialized examples (`parse` reads them), always in the same order."""

    @abc.abstractmethod
    def located_records(self, split):
        """`records`, each with where it comes from: (a text that names the file, record). For error messages."""

    @abc.abstractmethod
    def shuffled_records(self, split, seed, epoch, buffer_size, located=False):
        """Like `records`, in an order that is a function of (seed, epoch), both integers or int64 scalar tensors.

        With `located`, like `located_records` in the same order.
        """

    @abc.abstractmethod
    def fingerprint(self, split):
        """What changes when the examples of `split` do, made of what JSON has; "place" is where the data lies.

        Raises:
          UnusableError: a file is missing.
        """

    @abc.abstractmethod
    def parse(self, record):
        """A serialized example -> {"image": encoded bytes, "label": int64}."""

    def skip_damaged(self, split, seconds=math.inf):  # noqa: B027, files that are read one by one have none
        """Looks for records of `split` that cannot be read at all, and leaves them out; after `seconds`, in no further file.

        Raises:
          UnusableError: they are more than `bad` allows.
        """


def slices(split, sizes):
    """[(name of a split, first example, example after the last)] of TFDS slicing syntax, rounded as TFDS rounds.

    Args:
      split: such as train[:90%] or train[100:200]+test.
      sizes: {name of a split: how many examples it has}.

    Raises:
      ValueError: it cannot be read, or does not fit the sizes.
    """
    counted = {name: _Counted(count) for name, count in sizes.items()}
    parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(counted)
    return [(part.splitname, part.from_ or 0, sizes[part.splitname] if part.to is None else part.to) for part in parts]


def file_state(name):
    """Size in bytes and time of the last change in ns of a file, which need not be a local one."""
    try:
        local = os.stat(name)
        return local.st_size, local.st_mtime_ns
    except OSError:  # gfile, which knows remote ones, counts whole seconds
        remote = tf.io.gfile.stat(name)
        return remote.length, remote.mtime_nsec


class _Counted(NamedTuple):
    num_examples: int


def shuffle_seeds(seed, epoch, count):
    """`count` int64 seeds of an epoch's order. The keys of the augmentation, (seed, position >= 0), are others."""
    key = tf.stack([tf.cast(seed, tf.int64), -1 - tf.cast(epoch, tf.int64)])
    return tf.random.stateless_uniform([count], key, minval=None, maxval=None, dtype=tf.int64)


class Stretch(NamedTuple):
    """`take` records of a TFRecord file, after the first `skip`."""

    filename: str
    skip: int
    take: int


@dataclasses.dataclass(frozen=True)
class RecordFiles(Source):
    """A source whose records lie in TFRecord files."""

    _damaged: set = dataclasses.field(default_factory=set, kw_only=True, compare=False, repr=False)  # (file, record)

    @abc.abstractmethod
    def stretches(self, split):
        """The Stretches that make up `split`. Raises KeyError, ValueError or AssertionError where it cannot be read."""

    def _takes(self, split):
        return [stretch.take for stretch in self._whole(split)]

    def records(self, split):
        """A finite Dataset of serialized examples (`parse` reads them), always in the same order."""
        stretches, files = self._files(split)
        return _read(files, stretches)

    def located_records(self, split):
        """`records`, each with where it comes from: (a text that names file and record, record)."""
        stretches, files = self._files(split)
        return _read(files, stretches, _located)

    def shuffled_records(self, split, seed, epoch, buffer_size, located=False):
        """Like `records`, in an order that is a function of (seed, epoch), both integers or int64 scalar tensors.

        The files are shuffled, and then the records through a buffer of `buffer_size`. With `located`, like `located_records`.
        """
        # Dataset.shuffle mixes the graph's seed in: what a caller did to tf.random.set_seed must not change the order.
        tf.compat.v1.get_default_graph().seed = None
        seeds = shuffle_seeds(seed, epoch, 2)
        stretches, files = self._files(split)
        files = files.shuffle(len(stretches), seed=seeds[0], reshuffle_each_iteration=False)
        records = _read(files, stretches, _located if located else _plain)
        return records.shuffle(buffer_size, seed=seeds[1], reshuffle_each_iteration=False)

    def fingerprint(self, split):
        """What changes when the examples of `split` do, made of what JSON has; "place" is the folder of the files."""
        stretches, _ = self._files(split)
        place = os.path.dirname(os.path.abspath(stretches[0].filename))
        files = [[os.path.basename(name), skip, take, *file_state(name)] for name, skip, take in stretches]
        return {"place": place, "classes": list(self.class_names), "files": files}

    def skip_damaged(self, split, seconds=math.inf):
        """Reads all records of `split`, decodes none, and leaves those with a wrong checksum out from now on."""
        start = time.monotonic()
        for name, skip, take in self._whole(split):
            if time.monotonic() - start > seconds:
                return
            before = None
            while take > 0:
                read = 0
                try:
                    for _ in without_autotune(tf.data.TFRecordDataset(name).skip(skip).take(take)):
                        read += 1
                except tf.errors.OpError as error:
                    where, why = f"{name} record {skip + read}", f"is damaged ({one_line_of(error)})"
                    if why == before:  # at the same byte: its length is wrong, so that nothing behind it can be reached
                        remedy = "what follows cannot be read; prepare or copy this file again"
                        raise UnusableError(f"{name} record {skip - 1}: is damaged in its length, and {remedy}") from None
                    before = why
                    self.bad.add(where, why, "prepare or copy this file again")
                    self._damaged.add((name, skip + read))
                else:
                    if read < take:
                        raise UnusableError(f"{name}: ends after {skip + read} records, {skip + take} are wanted; "
                                            "prepare or copy this file again")
                skip, take = skip + read + 1, take - read - 1
        if not self._whole(split):
            raise UnusableError(f"{self.name}: every record of {split} is damaged; prepare or copy its files again")

    def _whole(self, split):
        """The stretches of `split`, cut around damaged records."""
        if not self._damaged:
            return list(self.stretches(split))
        parts = []
        for name, skip, take in self.stretches(split):
            holes = sorted(record for file, record in self._damaged if file == name and skip <= record < skip + take)
            for hole in [*holes, skip + take]:
                if hole > skip:
                    parts.append(Stretch(name, skip, hole - skip))
                skip = hole + 1
        return parts

    def _files(self, split):
        stretches = self._whole(split)
        for name in (stretch.filename for stretch in stretches):
            if not tf.io.gfile.exists(name):
                raise UnusableError(f"{name}: this file of {self.name} is missing; copy it there or prepare the data again")
        names, skips, takes = zip(*stretches, strict=True)
        columns = (list(names), tf.constant(skips, tf.int64), tf.constant(takes, tf.int64))
        return stretches, tf.data.Dataset.from_tensor_slices(columns)


def _plain(name, skip, take):
    return tf.data.TFRecordDataset(name).skip(skip).take(take)


def _located(name, skip, take):
    records = _plain(name, skip, take).enumerate(skip)
    return records.map(lambda index, record: (tf.strings.join([name, " record ", tf.strings.as_string(index)]), record))


def _read(files, stretches, open_file=_plain):
    records = files.interleave(
        open_file, cycle_length=PARALLEL_READS, block_length=READ_BLOCK, num_parallel_calls=PARALLEL_READS, deterministic=True,
    )
    # A shortened file ends in an error, not in an epoch that is shorter than the steps were counted for.
    return records.apply(tf.data.experimental.assert_cardinality(sum(stretch.take for stretch in stretches)))
