"""Where examples come from, by --dataset: TFDS by name, or the user's own folder, arrays, table or TFRecord files."""

import collections
import importlib
import os

from input_pipeline.common.errors import UnusableError
from input_pipeline.config import check_own_files
from input_pipeline.images.loading import BadExamples
from input_pipeline.sources.base import first_of


def open_source(config):
    """Opens the data set of a DataConfig, a Source. Lists files and reads headers, decodes nothing; prepares a TFDS data set.

    Only the module of this kind of data is imported. Its `open_source` takes the DataConfig, the path after the colon of
    --dataset, and BadExamples. Raises SettingError if there is no such data, or it does not contain images with one label each,
    UnusableError if it is damaged, or not prepared and cannot be downloaded, or has no examples or fewer than two classes.
    """
    check_own_files(config)
    kind, path = config.own_files
    module = importlib.import_module(f"input_pipeline.sources.{kind or 'tfds'}")
    source = module.open_source(config, os.path.expanduser(path), BadExamples(config.max_bad_examples))
    _check_contents(source)
    return source


def _check_contents(source):
    """Raises UnusableError if a Source has no example at all, or no classes between which a network could decide."""
    sizes, names = source.split_sizes(), source.class_names
    if sizes and not any(sizes.values()):
        files = first_of(file for split in sizes for file in source.files_of(split))
        raise UnusableError(f"--dataset={source.name}: contains no example ({files}); give files that contain some")
    if len(names) == 1:
        remedy = f"has one class, {names[0]}; a classifier needs at least two, so give the data of all classes"
        raise UnusableError(f"--dataset={source.name}: {remedy}")
    if repeated := [name for name, count in collections.Counter(names).items() if count > 1]:
        remedy = f"has several classes with the name {first_of(repeated)}; give each class a name of its own"
        raise UnusableError(f"--dataset={source.name}: {remedy}")
