"""The rows of the benchmark that draw batches and train nothing: this project's input, and what it is compared with."""

import contextlib

import tensorflow as tf

from input_pipeline.common.batches import without_autotune
from train_lib.modes.benchmark import pipelines as compared
from train_lib.modes.benchmark.rows import RowFailed

INPUT_SECONDS = 0.3  # a round lasts at least so long, and no longer than its last call takes
CALL_SECONDS, MOST_PER_CALL = 0.02, 64  # of drawing in one compiled call: much longer than the call itself takes; batches
FEWEST_BATCHES = 8  # of a round
# What a pipeline has ready from before would count as infinitely fast. Autotune's buffers grow, so a number alone would not do.
DRAINED_BATCHES, DRAINED_SECONDS = 8, 0.1
FIRST_EPOCH_SECONDS = 10.0  # at most, for a stream's first pass over its files
SAMPLED_IMAGES = 16  # of the first images of a stream
LARGEST_BUFFER = 1e9  # bytes that the tutorial's shuffle may hold; a benchmark must not fill the memory

# Deleting an iterator whose autotune is on waits for a thread of tf.data, up to minutes.
_kept_alive = []


@tf.function
def _draw_compiled(iterator, count):
    for _ in tf.range(count):
        next(iterator)


class DrawnRow:
    """Batches drawn on the host and thrown away: several in one compiled call, as the loop draws them.

    Args:
      bench: Bench.
    """

    def __init__(self, bench):
        self._bench = bench
        self._iterator = iter(self._open(bench.run.train_split, bench.config))
        self._batches_per_call = 1
        _kept_alive.append(self._iterator)

    def _open(self, split, config):
        """The endless Dataset, or Iterator, of global batches; RowFailed where this row has nothing to measure."""
        raise NotImplementedError

    def warm_up(self):
        """Starts the pipeline, which fills its buffers."""
        return self.measure()

    def measure(self, num_steps=0):
        """Images/s over `INPUT_SECONDS`; `num_steps` is for the rows that train."""
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
        _draw_compiled(self._iterator, tf.constant(count))

    def close(self):
        """Nothing to close."""


class InputRow(DrawnRow):
    """Training batches as the loop gets them."""

    def _open(self, split, config):
        return split.training_batches(config.general.seed, 0, config.optimization.global_batch_size, config.data.augmentations)


class NumpyGatherRow(DrawnRow):
    """NumPy's random gather of whole images."""

    def _open(self, split, config):
        _images_in_memory(split)
        return compared.numpy_gather(split.images, split.labels, config.optimization.global_batch_size)

    def _call(self, count):
        for _ in range(count):
            next(self._iterator)


class CanonicalRow(DrawnRow):
    """The per-example tf.data pipeline, with the augmentations that the run has."""

    def _open(self, split, config):
        batch_size, augmentations = config.optimization.global_batch_size, config.data.augmentations
        if hasattr(split, "images"):
            return compared.canonical(*_tensors(self._bench, split), batch_size, augmentations)
        return compared.canonical_stream(split, batch_size, augmentations)


class TutorialRow(DrawnRow):
    """The tutorial's pipeline, which augments nothing."""

    def _open(self, split, config):
        _images_in_memory(split)
        pixels = split.images[0].size
        if 4 * pixels * min(compared.SHUFFLED, split.num_examples) > LARGEST_BUFFER:
            height, width, _ = split.image_shape
            raise RowFailed(f"its shuffle would hold {compared.SHUFFLED:,} float images of {height} x {width}")
        return compared.tutorial(*_tensors(self._bench, split), config.optimization.global_batch_size)


class ReadRow(DrawnRow):
    """A stream's records, unparsed. Its warm-up goes once through the files, so that no round is the first to read them.

    Attributes:
      first_epoch: of that pass {"images", "seconds", "images_per_second", "complete"}; None before. "complete" is False where
        the files are so many that it was ended early: then rounds of all rows read from the disk too.
    """

    first_epoch = None

    def _open(self, split, config):
        _no_images_in_memory(split)
        return compared.records(split, config.optimization.global_batch_size, config.general.seed)

    def warm_up(self):
        """Reads an epoch, at most `FIRST_EPOCH_SECONDS`."""
        batch_size = self._bench.config.optimization.global_batch_size
        batches = -(-self._bench.run.train_split.num_examples // batch_size)
        done, start, seconds = 0, self._bench.clock(), 0.0
        while done < batches and seconds < FIRST_EPOCH_SECONDS:
            next(self._iterator)
            done += 1
            seconds = self._bench.clock() - start
        self.first_epoch = {
            "images": done * batch_size, "seconds": seconds, "images_per_second": done * batch_size / seconds,
            "complete": done == batches,
        }
        if done < batches:
            self._bench.note(f"the files take longer than {FIRST_EPOCH_SECONDS:.0f} s to read: rounds may wait for the disk")
        return self.measure()


class ReadDecodeRow(DrawnRow):
    """A stream's records, parsed and decoded in full."""

    def _open(self, split, config):
        _no_images_in_memory(split)
        return compared.decoded_records(split, config.optimization.global_batch_size, config.general.seed)


class DecodeCropRow(DrawnRow):
    """A stream's JPEGs, of which nothing but the windows that training cuts is decoded: the bound of `input`."""

    def _open(self, split, config):
        _no_images_in_memory(split)
        for record in without_autotune(split.source.records(split.split).take(SAMPLED_IMAGES)):
            with contextlib.suppress(tf.errors.OpError):  # of a bad example, which the row leaves out or ends with, as the run
                if not tf.io.is_jpeg(split.source.parse(record)["image"]):
                    raise RowFailed("not all images are JPEGs, the only format of which a part can be decoded")
        return compared.decoded_windows(
            split, config.optimization.global_batch_size, config.general.seed, config.data.augmentations)


class ReadDecodeAugmentRow(InputRow):
    """All that a stream does: `input` a second time, so that the parts can be read side by side, and the noise seen."""

    def _open(self, split, config):
        _no_images_in_memory(split)
        return super()._open(split, config)


def _images_in_memory(split):
    if not hasattr(split, "images"):
        raise RowFailed("the images of a stream are not in memory")


def _no_images_in_memory(split):
    if hasattr(split, "images"):
        raise RowFailed("the images are in memory; it is a part of --input=stream")


def _tensors(bench, split):
    """Images and labels in TensorFlow's memory, once for all rows that slice them."""
    if "tensors" not in bench.shared:
        with tf.device("/cpu:0"):
            bench.shared["tensors"] = tf.constant(split.images), tf.constant(split.labels)
    return bench.shared["tensors"]
