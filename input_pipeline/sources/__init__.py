"""Where examples come from, by --dataset: TFDS by name, or the user's own folder, arrays, table or TFRecord files."""

import importlib
import os

from input_pipeline.config import check_own_files
from input_pipeline.images.loading import BadExamples


def open_source(config):
    """Opens the data set of a DataConfig: lists files and reads headers, decodes nothing.

    A TFDS data set is prepared first if necessary. Only the module of this kind of data is imported. Its `open_source` has the
    arguments DataConfig, the path after the colon of --dataset, and BadExamples for those that cannot be used.

    Returns:
      Source.

    Raises:
      SettingError: there is no such data set, file or folder, or it does not contain images with one label each.
      UnusableError: it is not prepared and cannot be downloaded, or it is damaged.
    """
    check_own_files(config)
    kind, path = config.own_files
    module = importlib.import_module(f"input_pipeline.sources.{kind or 'tfds'}")
    return module.open_source(config, os.path.expanduser(path), BadExamples(config.max_bad_examples))
