"""--dataset=folder:PATH: image files in one folder per class, inside one folder per split or without splits."""

import os
import pathlib

from input_pipeline.common.errors import SettingError, UnusableError
from input_pipeline.images.loading import BadExamples
from input_pipeline.sources.base import WITHOUT_SPLITS
from input_pipeline.sources.listed import Listed, image_files, is_readable

IMAGE_FILES = (".png", ".jpg", ".jpeg")


def open_source(config, path):
    """Opens PATH/<split>/<class>/* or PATH/<class>/*, files ending in .png, .jpg or .jpeg; the latter is the split `train`.

    Classes are the sorted names of the folders in `train`, or in all splits if there is no `train`. Links are followed. The order
    of the examples is fixed and mixes the classes. Hidden files and folders, and other files, are ignored.

    Args:
      config: DataConfig.
      path: the folder; may begin with ~.

    Raises:
      SettingError: there are no images at either depth.
      UnusableError: a folder cannot be read, or a class is empty or not in `train`.
    """
    root, bad = pathlib.Path(os.path.expanduser(path)), BadExamples(config.max_bad_examples)
    try:
        splits = _splits(root, config)
        found = {split: {folder: _images(folder) for folder in folders} for split, folders in splits.items()}
    except OSError as error:
        raise UnusableError(f"{error.filename}: cannot be read ({error.strerror}); change its permissions") from None
    names = sorted({folder.name for folder in found.get("train") or [folder for folders in found.values() for folder in folders]})
    examples = {split: [] for split in found}
    for split, folders in found.items():
        for folder, images in folders.items():
            if folder.name not in names:
                bad.add(f"{folder}", "is a class that train does not have", "rename it as in train, or remove it")
                continue
            if not images:
                bad.add(f"{folder}", f"is the folder of a class and contains no {', '.join(IMAGE_FILES)}", "fill or remove it")
            for image in images:
                if is_readable(image, str(image), bad):
                    key, label = os.fsencode(os.path.relpath(image, root)), names.index(folder.name)
                    examples[split].append((key, Listed(label, os.fsencode(image), str(image))))
    shown = tuple(os.fsencode(name).decode("utf-8", "backslashreplace") for name in names)  # a folder's name may be any bytes
    return image_files(config, shown, examples, root, bad)


def _splits(root, config):
    """{split: [folders of its classes]}."""
    folders = _subfolders(root)
    if any(_images(folder) for folder in folders):
        return {WITHOUT_SPLITS: folders}
    splits = {folder.name: _subfolders(folder) for folder in folders}
    splits = {name: labels for name, labels in splits.items() if any(_images(label) for label in labels)}
    if not splits:
        remedy = f"has no {', '.join(IMAGE_FILES)} in <split>/<class>/ or <class>/; give the folder above the splits or classes"
        raise SettingError("dataset", config.dataset, remedy)
    return splits


def _subfolders(folder):
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _images(folder):
    return sorted(path for path in folder.iterdir()
                  if path.suffix.lower() in IMAGE_FILES and not path.name.startswith(".") and path.is_file())
