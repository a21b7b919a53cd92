"""Where examples come from: the embedded data set and every TFDS image-classification set, by name."""

import contextlib
import dataclasses
import difflib
import fcntl
import pathlib
import sys

import tensorflow as tf
import tensorflow_datasets as tfds

from input_pipeline import shapes
from input_pipeline.errors import SettingError, UnusableError

# Encoded images are small; more readers than this only compete for the same disk.
PARALLEL_READS = 4


@dataclasses.dataclass(frozen=True)
class Source:
    """A prepared data set.

    Attributes:
      name: as given to --dataset.
      class_names: one per label, in the order of the labels.
      image_shape: (height, width, 3) where all images have one size, else None.
      builder: the TFDS builder that reads it.
    """

    name: str
    class_names: tuple
    image_shape: tuple | None
    builder: tfds.core.DatasetBuilder

    def num_examples(self, split, flag):
        """How many examples `split` has. Raises SettingError, naming `flag`, for a split that does not exist."""
        try:
            count = self.builder.info.splits[split].num_examples
        except (KeyError, ValueError, AssertionError) as error:
            there = ", ".join(f"{name} ({info.num_examples})" for name, info in self.builder.info.splits.items())
            remedy = f"{self.name} has no such split ({_first_line(error)}); it has {there}; slices look like train[:90%]"
            raise SettingError(flag, split, remedy) from None
        if count == 0:
            raise SettingError(flag, split, f"holds no example of {self.name}; give a larger slice")
        return count

    def encoded(self, split):
        """A finite Dataset of {"image": encoded bytes, "label": int64}, always in the same order."""
        dataset = self.builder.as_dataset(
            split, decoders={"image": tfds.decode.SkipDecoding()}, read_config=_read_config(), shuffle_files=False
        )
        return dataset.map(_image_and_label)

    def encoded_shuffled(self, split, seed, epoch, buffer_size):
        """Like `encoded`, in an order that is a function of (seed, epoch), both int64 scalars, tensors too."""
        instructions = self.builder.info.splits[split].file_instructions
        names = [instruction.filename for instruction in instructions]
        skips = [instruction.skip for instruction in instructions]
        takes = [instruction.take for instruction in instructions]  # -1: all
        files = tf.data.Dataset.from_tensor_slices((names, tf.constant(skips, tf.int64), tf.constant(takes, tf.int64)))
        features = self.builder.info.features
        decoders = {"image": tfds.decode.SkipDecoding()}
        mixed = tf.random.experimental.stateless_fold_in(tf.stack([seed, tf.constant(0, tf.int64)]), epoch)
        return (
            files.shuffle(len(instructions), seed=mixed[0], reshuffle_each_iteration=False)
            .interleave(
                lambda name, skip, take: tf.data.TFRecordDataset(name).skip(skip).take(take),
                cycle_length=PARALLEL_READS, num_parallel_calls=PARALLEL_READS, deterministic=True,
            )
            .shuffle(buffer_size, seed=mixed[1], reshuffle_each_iteration=False)
            .map(lambda record: _image_and_label(features.deserialize_example(record, decoders=decoders)))
        )


def _image_and_label(example):
    return {"image": example["image"], "label": example["label"]}


def _read_config():
    options = tf.data.Options()
    options.autotune.enabled = False  # its thread can hold up the end of an iterator for minutes
    return tfds.ReadConfig(options=options, try_autocache=False, interleave_cycle_length=PARALLEL_READS)


def open_source(config):
    """Opens the data set that a DataConfig names, and prepares it first where that was not done yet.

    Raises:
      SettingError: no such data set, or not one of images with one label each.
      UnusableError: it can be neither found prepared nor downloaded.
    """
    builder = _find_builder(config)
    _prepare(builder, config)
    features = builder.info.features
    has_both = isinstance(features, tfds.features.FeaturesDict) and {"image", "label"} <= set(features)
    image, label = (features["image"], features["label"]) if has_both else (None, None)
    if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
        remedy = "has no feature `image` with one class `label`; give an image-classification set, such as cifar10"
        raise SettingError("dataset", config.dataset, remedy)
    height, width, _ = image.shape
    shape = (height, width, 3) if height and width else None
    return Source(config.dataset, tuple(label.names), shape, builder)


def _find_builder(config):
    directory = _expand(config.data_dir)
    try:
        if config.dataset == "shapes":
            return shapes.Shapes(data_dir=directory)
        return tfds.builder(config.dataset, data_dir=directory, try_gcs=False)
    except tfds.core.registered.DatasetNotFoundError:
        close = difflib.get_close_matches(config.dataset, ["shapes", *tfds.list_builders()], n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "give shapes or a name from the TFDS catalogue"
        raise SettingError("dataset", config.dataset, f"no such data set; {hint}") from None
    except OSError as error:
        raise UnusableError(f"--data_dir={config.data_dir}: {_first_line(error)}; give a folder that can be read") from None
    except (ValueError, RuntimeError, AssertionError, ImportError) as error:
        raise SettingError("dataset", config.dataset, f"TFDS cannot open it: {_first_line(error)}") from None


def _expand(directory):
    return None if directory is None else str(pathlib.Path(directory).expanduser())


def _is_prepared(builder):
    return bool(builder.info.splits) and pathlib.Path(builder.data_path).is_dir()


def _prepare(builder, config):
    """Lets one process prepare the data while any other waits for it. A prepared folder need not be writable."""
    if _is_prepared(builder):
        return
    folder = pathlib.Path(builder.data_dir_root if hasattr(builder, "data_dir_root") else builder._data_dir_root)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _only_process(folder / f".{builder.name}.lock"):
            builder = _find_builder(config)  # another process may have prepared it in the meantime
            if not _is_prepared(builder):
                _download_and_prepare(builder)
    except Exception as error:  # TFDS raises whatever its downloads, readers and file systems raise
        remedy = f"put a prepared {builder.name}/{builder.version} into {folder} (or name its folder by --data_dir)"
        if config.dataset != "shapes":
            remedy += f", or the archive that TFDS wants into {folder}/downloads/manual, or run where there is a network"
        reason = f"{type(error).__name__}: {_first_line(error)}"
        raise UnusableError(f"--dataset={config.dataset}: cannot be prepared in {folder} ({reason}); {remedy}") from None


def _download_and_prepare(builder):
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    print(f"preparing {builder.name} {builder.version} in {builder.data_path}", file=sys.stderr)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))


@contextlib.contextmanager
def _only_process(lock_path):
    with open(lock_path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that prepares data ({lock_path})", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
