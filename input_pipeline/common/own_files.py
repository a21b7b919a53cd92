"""Whether the user's own files behind --dataset=KIND:... are there. Knows no TensorFlow: it is asked before its import."""

import glob
import os

from input_pipeline.common.errors import SettingError

CLASS_NAMES = "class_names.txt"  # beside TFRecord files: the classes' names, one a line


def check_own_files(config):
    """Raises SettingError where a DataConfig names a folder, file or pattern of the user's that is not there."""
    kind, path = config.own_files
    path = os.path.expanduser(path)
    if kind == "folder" and not os.path.isdir(path):
        raise SettingError("dataset", config.dataset, "there is no such folder; give folder:PATH of one that exists")
    if kind in ("npz", "csv") and not os.path.isfile(path):
        raise SettingError("dataset", config.dataset, f"there is no such file; give {kind}:PATH of one that exists")
    if kind == "tfrecord" and not fitting(path):
        raise SettingError("dataset", config.dataset, "no file fits; give tfrecord:PATTERN, such as 'tfrecord:data/*.tfrecord'")


def fitting(pattern):
    """The files that a pattern of --dataset=tfrecord:... stands for, sorted by name."""
    found = glob.glob(os.path.expanduser(pattern), recursive=True)
    return sorted(path for path in found if os.path.isfile(path) and os.path.basename(path) != CLASS_NAMES)
