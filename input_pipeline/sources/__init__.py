"""Where examples come from, behind --dataset: TFDS by name, or the user's own folder, arrays, table or TFRecord files."""

from input_pipeline.common.batches import without_autotune
from input_pipeline.common.own_files import check_own_files
from input_pipeline.sources.base import Source
from input_pipeline.sources.csv import open_csv
from input_pipeline.sources.folder import open_folder
from input_pipeline.sources.npz import open_npz
from input_pipeline.sources.tfds import open_tfds
from input_pipeline.sources.tfrecord import open_tfrecord, write_tfrecords

__all__ = ["Source", "encoded_examples", "open_source", "write_tfrecords"]

_OPENERS = {"folder": open_folder, "npz": open_npz, "csv": open_csv, "tfrecord": open_tfrecord}


def open_source(config):
    """Opens the data set that a DataConfig names: lists files and reads headers, decodes nothing.

    One of TFDS is prepared first where that was not done yet.

    Returns:
      Source.

    Raises:
      SettingError: no such data set, file or folder, or not one of images with one label each.
      UnusableError: it can be neither found prepared nor downloaded, or what is there cannot be used.
    """
    check_own_files(config)
    kind, path = config.own_files
    return _OPENERS[kind](config, path) if kind else open_tfds(config)


def encoded_examples(source, split):
    """Yields (encoded image bytes, label) of a split of any Source, for `write_tfrecords`."""
    for record in without_autotune(source.records(split)):
        example = source.parse(record)
        yield example["image"].numpy(), int(example["label"])
