"""--dataset=folder:PATH: one folder of image files a class, below one folder a split or without splits."""

import os
import pathlib

import tensorflow as tf

from input_pipeline.common.errors import SettingError, UnusableError
from input_pipeline.images.bad_examples import BadExamples
from input_pipeline.sources.listed import Listed, ListedSource, common_shape, is_readable, scattered

IMAGE_FILES = (".png", ".jpg", ".jpeg")
WITHOUT_SPLITS = "train"  # what the only split of a source is called that knows of none


def open_folder(config, path):
    """Opens PATH/<split>/<class>/* or PATH/<class>/*, files ending in .png, .jpg or .jpeg; the latter is the split `train`.

    Classes are the folders' names, sorted: those of `train` where there is such a split. Links are followed. The order of the
    examples is fixed and mixes the classes. What begins with a dot, and files of other kinds, are left aside.

    Args:
      config: DataConfig.
      path: the folder; may begin with ~.

    Raises:
      SettingError: there is no image at either depth.
      UnusableError: a folder cannot be read, a class is empty, or `train` does not know it.
    """
    root, bad = pathlib.Path(os.path.expanduser(path)), BadExamples(config.max_bad_examples)
    try:
        splits = _splits(root, config)
        found = {name: {label.name: _images(label) for label in labels} for name, labels in splits.items()}
    except OSError as error:
        raise UnusableError(f"{error.filename}: cannot be read ({error.strerror}); change its permissions") from None
    names = sorted(found["train"] if "train" in found else {label for labels in found.values() for label in labels})
    examples = {}
    for split, labels in found.items():
        listed = []
        for label, images in labels.items():
            _check_class(root if len(found) == 1 and splits[split][0].parent == root else root / split, label, images, names, bad)
            listed += [Listed(names.index(label), os.fsencode(image), str(image)) for image in images
                       if label in names and is_readable(image, str(image), bad)]
        examples[split] = scattered(listed, lambda example: os.fsencode(os.path.relpath(os.fsdecode(example.image), root)))
    shape = common_shape(example.image for listed in examples.values() for example in listed)
    shown = tuple(os.fsencode(name).decode("utf-8", "backslashreplace") for name in names)  # a folder's name may hold any bytes
    return ListedSource(config.dataset, shown, shape, examples, tf.io.read_file, str(root), bad=bad)


def _splits(root, config):
    """{split: [folders of its classes]}."""
    folders = _subfolders(root)
    if any(_images(folder) for folder in folders):
        return {WITHOUT_SPLITS: folders}
    splits = {folder.name: _subfolders(folder) for folder in folders}
    splits = {name: labels for name, labels in splits.items() if any(_images(label) for label in labels)}
    if not splits:
        remedy = f"holds no {', '.join(IMAGE_FILES)} in <split>/<class>/ or <class>/; give the folder above the splits or classes"
        raise SettingError("dataset", config.dataset, remedy)
    return splits


def _check_class(folder, label, images, names, bad):
    if label not in names:
        bad.add(f"{folder / label}", "is a class that train does not have", "rename it as in train, or remove it")
    elif not images:
        bad.add(f"{folder / label}", f"is the folder of a class and holds no {', '.join(IMAGE_FILES)}", "fill or remove it")


def _subfolders(folder):
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _images(folder):
    return sorted(path for path in folder.iterdir()
                  if path.suffix.lower() in IMAGE_FILES and not path.name.startswith(".") and path.is_file())
