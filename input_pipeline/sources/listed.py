"""A source whose examples are listed one by one: image files, or rows of arrays. Any example can be read without the others."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from input_pipeline.common.errors import one_line
from input_pipeline.images import headers
from input_pipeline.sources.base import Source, file_state, shuffle_seeds

_LABEL_DIGITS = 9


class Listed(NamedTuple):
    """One example: its label, the name by which `ListedSource.read` finds its image, and where it is, for error messages."""

    label: int
    image: bytes
    where: str


@dataclasses.dataclass(frozen=True, eq=False)
class ListedSource(Source):
    """A source of listed `examples`, {name of a split: list of Listed}, which are in the file or folder `place`.

    `read` returns the encoded bytes of an image, given its name, in a TensorFlow graph. `state` returns a value that changes if
    the file that contains this image changes.
    """

    examples: dict
    read: Callable
    place: str
    state: Callable = file_state
    _tables: dict = dataclasses.field(default_factory=dict, kw_only=True, repr=False)

    def split_sizes(self):
        return {name: len(examples) for name, examples in self.examples.items()}

    def files_of(self, split):
        return [self.place]

    def records(self, split):
        return tf.data.Dataset.from_tensor_slices(self._table(split)).enumerate()

    def shuffled_records(self, split, seed, epoch, buffer_size):
        """See Source. Needs no buffer: the names of the images are shuffled, and the images are read afterwards."""
        table = self._table(split)
        keys = tf.random.stateless_uniform(table.shape, shuffle_seeds(seed, epoch), minval=None, maxval=None, dtype=tf.int64)
        order = tf.argsort(keys, stable=True)
        return tf.data.Dataset.from_tensor_slices((tf.cast(order, tf.int64), tf.gather(table, order)))

    def where(self, split, number):
        return os.fsencode(self._chosen(split)[number].where).decode(errors="replace")

    def fingerprint(self, split):
        digest = hashlib.sha256()
        try:
            for label, image, _ in self._chosen(split):
                digest.update(repr((label, image, self.state(image))).encode())
        except (OSError, tf.errors.OpError):  # the file is gone; decoding will report it
            digest.update(b"?")
        return {"place": os.path.abspath(self.place), "classes": list(self.class_names), "examples": digest.hexdigest()}

    def parse(self, record):
        """A serialized example -> {"image": encoded bytes, "label": int64}."""
        # The label has a fixed number of digits, because the name after it may contain any byte.
        label = tf.strings.to_number(tf.strings.substr(record, 0, _LABEL_DIGITS), tf.int64)
        return {"image": self.read(tf.strings.substr(record, _LABEL_DIGITS, -1)), "label": label}

    def _chosen(self, split):
        return [example for name, start, stop in self._slices(split) for example in self.examples[name][start:stop]]

    def _table(self, split):
        """The serialized examples of a split, a string tensor [n]."""
        if split not in self._tables:
            records = [b"%0*d%s" % (_LABEL_DIGITS, example.label, example.image) for example in self._chosen(split)]
            with tf.init_scope(), tf.device("/cpu:0"):  # a graph that uses the tensor then refers to it instead of copying it
                self._tables[split] = tf.constant(records)
        return self._tables[split]


def image_files(config, class_names, examples, place, bad, faults=None, notes=()):
    """A ListedSource of image files, in a fixed order that mixes the classes.

    So any slice contains all classes, as a slice of a TFDS split does. The order is that of a hash of the keys. If a file is
    added or removed, the others keep their order. `examples`: {name of a split: [(key, Listed)]}; a key is the bytes to hash.
    `faults` and `notes` are those of the Source.
    """
    listed = {split: [] for split in examples}
    for split, pairs in examples.items():
        for _, example in sorted(pairs, key=lambda pair: (hashlib.sha256(pair[0]).digest(), pair[1].where)):
            if (size := os.path.getsize(example.image)) > headers.MAX_BYTES:
                bad.add(example.where, f"has {size} bytes, the limit is {headers.MAX_BYTES}", "replace or remove it")
            else:
                listed[split].append(example)
    shape = headers.common_shape(functools.partial(open, example.image, "rb") for part in listed.values() for example in part)
    more = {"bad": bad, "faults": faults or {}, "notes": tuple(map(one_line, notes))}
    return ListedSource(config.dataset, tuple(class_names), shape, listed, tf.io.read_file, str(place), **more)
