"""Where examples come from, by --dataset: TFDS by name, or the user's own folder, arrays, table or TFRecord files."""

import importlib
import os

from input_pipeline.config import check_own_files
from input_pipeline.images.loading import BadExamples


def open_source(config):
    """Opens the data set of a DataConfig, a Source. Lists files and reads headers, decodes nothing; prepares a TFDS data set.

    Only the module of this kind of data is imported. Its `open_source` takes the DataConfig, the path after the colon of
    --dataset, and BadExamples. Raises SettingError if there is no such data, or it does not contain images with one label each,
    UnusableError if it is damaged, or not prepared and cannot be downloaded.
    """
    check_own_files(config)
    kind, path = config.own_files
    module = importlib.import_module(f"input_pipeline.sources.{kind or 'tfds'}")
    return module.open_source(config, os.path.expanduser(path), BadExamples(config.max_bad_examples))
