"""The rows of the benchmark that draw batches and train nothing: this project's input, and what it is compared with."""

import contextlib
import types

import tensorflow as tf

from input_pipeline.common.batches import without_autotune
from train_lib.modes.benchmark import pipelines
from train_lib.modes.benchmark.rows import OF_A_STREAM, Row, RowFailed

INPUT_SECONDS = 0.3  # the least length of a round; it ends with the first call after that
CALL_SECONDS, MOST_PER_CALL = 0.02, 64  # of drawing in one compiled call, much longer than the call itself takes; batches
FEWEST_BATCHES = 8  # of a round
# Batches that a pipeline has ready before the clock starts would count as infinitely fast, so they are drawn first. Autotune's
# buffers grow, so a number of batches alone would not be enough.
DRAINED_BATCHES, DRAINED_SECONDS = 8, 0.1
FIRST_EPOCH_SECONDS = 10.0  # at most, for the first pass over the files of a stream
SAMPLED_IMAGES = 16  # of the first images of a stream
LARGEST_BUFFER = 1e9  # bytes that the tutorial's shuffle may need; a benchmark must not fill the memory

# Deleting an iterator whose autotune is on waits for a thread of tf.data, for up to minutes.
_kept_alive = []


@tf.function
def _draw_compiled(iterator, count):
    for _ in tf.range(count):
        next(iterator)


class DrawnRow(Row):
    """Batches drawn on the host and thrown away: several in one compiled call, as the loop draws them.

    Args:
      bench: Bench.
      name: of the row, one of `INPUTS`.

    Raises:
      RowFailed: the row means nothing for the data.
    """

    def __init__(self, bench, name):
        super().__init__(bench)
        self._iterator = iter(open_batches(bench, name))
        self._batches_per_call = 1
        _kept_alive.append(self._iterator)

    def warm_up(self):
        """Starts the pipeline, which fills its buffers; returns images/s."""
        return self.measure()

    def measure(self, num_steps=0):
        """Returns images/s over `INPUT_SECONDS`. `num_steps` only matters for rows that train."""
        del num_steps
        self._draw(DRAINED_BATCHES, DRAINED_SECONDS)
        return self._bench.images_per_second(*self._draw(FEWEST_BATCHES, INPUT_SECONDS))

    def _draw(self, fewest, shortest):
        start, done, seconds = self._bench.clock(), 0, 0.0
        while done < fewest or seconds < shortest:
            self._call(self._batches_per_call)
            done += self._batches_per_call
            before, seconds = seconds, self._bench.clock() - start
            if seconds - before < CALL_SECONDS:
                self._batches_per_call = min(2 * self._batches_per_call, MOST_PER_CALL)
        return done, seconds

    def _call(self, count):
        if isinstance(self._iterator, types.GeneratorType):
            for _ in range(count):
                next(self._iterator)
        else:
            _draw_compiled(self._iterator, tf.constant(count))


class ReadRow(DrawnRow):
    """A stream's records, unparsed. Its warm-up reads the files once, so that no round is the first to read them.

    Attributes:
      first_epoch: figures of that pass, {"images", "seconds", "images_per_second", "complete"}; None before it. "complete" is
        False if there are so many files that it was ended early. Then the rounds of all rows read from the disk too.
    """

    first_epoch = None

    def warm_up(self):
        """Reads an epoch, for at most `FIRST_EPOCH_SECONDS`; returns images/s of a measurement after that."""
        batch_size = self._bench.batch_size
        batches = -(-self._bench.run.train_split.num_examples // batch_size)
        done, start, seconds = 0, self._bench.clock(), 0.0
        while done < batches and seconds < FIRST_EPOCH_SECONDS:
            next(self._iterator)
            done += 1
            seconds = self._bench.clock() - start
        self.first_epoch = {"images": done * batch_size, "seconds": seconds, "images_per_second": done * batch_size / seconds,
                            "complete": done == batches}
        if done < batches:
            self._bench.note(f"the files take longer than {FIRST_EPOCH_SECONDS:.0f} s to read: rounds may wait for the disk")
        return self.measure()


def open_batches(bench, name):
    """The batches of a row, as an endless Dataset or, for numpy_gather, a Python generator.

    Raises:
      RowFailed: the row means nothing for the data.
    """
    split, config, size = bench.run.train_split, bench.config, bench.batch_size
    augmentations, in_memory = config.data.augmentations, hasattr(split, "images")
    if in_memory and name in OF_A_STREAM:
        raise RowFailed("the images are in memory; this row measures a part of --input=stream")
    if not in_memory and name in ("numpy_gather", "tutorial"):
        raise RowFailed("the images of a stream are not in memory")
    match name:
        case "input" | "read_decode_augment":  # the latter repeats `input` next to its parts, which also shows the noise
            return bench.run.training_dataset()
        case "read" | "read_decode" | "decode_crop":
            if name == "decode_crop":
                _refuse_other_than_jpegs(split)
            return pipelines.part_of_stream(name, split, size, config.general.seed, augmentations)
        case "numpy_gather":
            return pipelines.numpy_gather(split.images, split.labels, size)
        case "canonical":
            if in_memory:
                return pipelines.canonical(*_tensors(bench), size, augmentations)
            return pipelines.canonical_stream(split, size, augmentations)
        case "tutorial":
            if 4 * split.images[0].size * min(pipelines.SHUFFLED, split.num_examples) > LARGEST_BUFFER:
                height, width, _ = split.image_shape
                raise RowFailed(f"its shuffle buffer would hold {pipelines.SHUFFLED:,} float images of {height} x {width}")
            return pipelines.tutorial(*_tensors(bench), size)


def _refuse_other_than_jpegs(split):
    for _, record in without_autotune(split.source.records(split.split).take(SAMPLED_IMAGES)):
        with contextlib.suppress(tf.errors.OpError):  # a bad example; the row treats it as the run does
            if not tf.io.is_jpeg(split.source.parse(record)["image"]):
                raise RowFailed("not all images are JPEGs, the only format that can be decoded in part")


def _tensors(bench):
    """Images and labels in TensorFlow's memory, once for all rows that slice them."""
    if "tensors" not in bench.shared:
        with tf.device("/cpu:0"):
            split = bench.run.train_split
            bench.shared["tensors"] = tf.constant(split.images), tf.constant(split.labels)
    return bench.shared["tensors"]
