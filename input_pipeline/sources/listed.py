"""A source whose examples are listed one by one: image files, or rows of arrays. Any example can be read without the others."""

import dataclasses
import hashlib
import os
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from input_pipeline.images import headers
from input_pipeline.sources.base import Source, file_state, shuffle_seeds, slices


class Listed(NamedTuple):
    """One example: its label, the name that `ListedSource.read` knows its image by, and where it lies, for errors."""

    label: int
    image: bytes
    where: str


@dataclasses.dataclass(frozen=True, eq=False)
class ListedSource(Source):
    """A source of listed examples. Its order is theirs; shuffled, it is a permutation of all of them.

    Attributes:
      examples: {name of a split: list of Listed}.
      read: scalar string tensor, the name of an image -> its encoded bytes; runs in a TensorFlow graph.
      place: the file or folder that they come from.
      state: name of an image -> what changes when the file does that it lies in.
    """

    examples: dict
    read: Callable
    place: str
    state: Callable = file_state
    _tables: dict = dataclasses.field(default_factory=dict, kw_only=True, repr=False)

    def split_sizes(self):
        """{name of a split: how many examples it has}."""
        return {name: len(examples) for name, examples in self.examples.items()}

    def _takes(self, split):
        return [stop - start for _, start, stop in slices(split, self.split_sizes())]

    def records(self, split):
        """A finite Dataset of serialized examples (`parse` reads them), always in the same order."""
        return tf.data.Dataset.from_tensor_slices(self._table(split))

    def located_records(self, split):
        """`records`, each with where it comes from: (a text that names the file, record). For error messages."""
        return tf.data.Dataset.from_tensor_slices((self._places(split), self._table(split)))

    def shuffled_records(self, split, seed, epoch, buffer_size, located=False):
        """Like `records`, permuted as a function of (seed, epoch), both integers or int64 scalar tensors.

        No buffer is needed, whatever `buffer_size`: a name is small, and the images are read after the shuffle. With `located`,
        like `located_records`.
        """
        first, second = tf.unstack(shuffle_seeds(seed, epoch, 2))
        keys = tf.random.stateless_uniform([len(self._chosen(split))], [first, second], minval=None, maxval=None, dtype=tf.int64)
        order = tf.argsort(keys, stable=True)
        records = tf.gather(self._table(split), order)
        return tf.data.Dataset.from_tensor_slices((tf.gather(self._places(split), order), records) if located else records)

    def fingerprint(self, split):
        """What changes when the examples of `split` do, made of what JSON has."""
        digest = hashlib.sha256()
        try:
            for label, image, _ in self._chosen(split):
                digest.update(repr((label, image, self.state(image))).encode())
        except (OSError, tf.errors.OpError):  # of a file that is gone: told when it is decoded
            digest.update(b"?")
        return {"place": os.path.abspath(self.place), "classes": list(self.class_names), "examples": digest.hexdigest()}

    def parse(self, record):
        """A serialized example -> {"image": encoded bytes, "label": int64}."""
        # Cut by bytes: the name of a file may hold anything.
        label = tf.strings.to_number(tf.strings.substr(record, 0, _LABEL_DIGITS), tf.int64)
        return {"image": self.read(tf.strings.substr(record, _LABEL_DIGITS, -1)), "label": label}

    def _chosen(self, split):
        parts = slices(split, self.split_sizes())
        return [example for name, start, stop in parts for example in self.examples[name][start:stop]]

    def _table(self, split):
        return self._kept(split, lambda example: b"%0*d%s" % (_LABEL_DIGITS, example.label, example.image))

    def _places(self, split):
        return self._kept(f"places of {split}", lambda example: os.fsencode(example.where), split)

    def _kept(self, name, text_of, split=None):
        if name not in self._tables:
            texts = [text_of(example) for example in self._chosen(split or name)]
            with tf.init_scope(), tf.device("/cpu:0"):  # a graph that reads it holds a reference, not a copy
                self._tables[name] = tf.constant(texts)
        return self._tables[name]


_LABEL_DIGITS = 9


def scattered(examples, key):
    """Examples in a fixed order that mixes the classes: any slice then holds all of them, as one of TFDS does.

    The order is that of a hash of `key(example)`, so that a file more or less leaves the order of the others.
    """
    return sorted(examples, key=lambda example: (hashlib.sha256(key(example)).digest(), example.where))


def is_readable(path, where, bad):
    """Whether an image file is not too large to be one; notes it in BadExamples where it is."""
    if (size := os.path.getsize(path)) > headers.MAX_BYTES:
        bad.add(where, f"has {size} bytes, the limit is {headers.MAX_BYTES}", "replace or remove it")
        return False
    return True


def common_shape(paths):
    """(height, width, 3) where all image files have one size by their headers, else None; stops at the second size."""
    common = None
    for path in paths:
        try:
            with open(path, "rb") as file:
                size = headers.usable_size(file)
        except (OSError, ValueError, headers.struct.error):
            continue  # told when it is decoded, if it ever is
        if size and common and size != common:
            return None
        common = common or size
    return common and (*common, 3)


def count_classes(labels):
    """How many classes there are by the labels alone: the first whole number from 0 on that is not among them.

    A gap is an empty class, so what lies beyond it is more likely a slip than a class.
    """
    there = set(labels)
    return next(number for number in range(len(there) + 1) if number not in there)
