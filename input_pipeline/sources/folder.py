"""--dataset=folder:PATH: image files in one folder per class, inside one folder per split or without splits."""

import os
import pathlib

from input_pipeline.common.errors import SettingError, UnusableError
from input_pipeline.sources.base import WITHOUT_SPLITS
from input_pipeline.sources.listed import Listed, image_files

IMAGE_FILES = (".png", ".jpg", ".jpeg")


def open_source(config, path, bad):
    """Opens PATH/<split>/<class>/* or PATH/<class>/*, files ending in .png, .jpg or .jpeg; the latter is the split `train`.

    Classes are the sorted names of the folders in `train`, or in all splits if there is no `train`. Links are followed; other
    files, and hidden files and folders, are ignored. The order of the examples is fixed and mixes the classes. Raises
    SettingError if there are no images, UnusableError if a folder cannot be read, or a class is empty or not in `train`.
    """
    root = pathlib.Path(path)
    try:
        found = _images_by_class(root)
        found = {WITHOUT_SPLITS: found} if any(found.values()) else {split.name: _images_by_class(split) for split in found}
    except OSError as error:
        raise UnusableError(f"{error.filename}: cannot be read ({error.strerror}); change its permissions") from None
    found = {split: folders for split, folders in found.items() if any(folders.values())}
    if not found:
        remedy = f"has no {', '.join(IMAGE_FILES)} in <split>/<class>/ or <class>/; give the folder above the splits or classes"
        raise SettingError("dataset", config.dataset, remedy)
    names = sorted({folder.name for folder in found.get("train") or [folder for folders in found.values() for folder in folders]})
    examples = {split: [] for split in found}
    for split, folders in found.items():
        for folder, images in folders.items():
            if folder.name not in names:
                bad.add(f"{folder}", "is a class that train does not have", "rename it as in train, or remove it")
            elif not images:
                bad.add(f"{folder}", f"is the folder of a class and contains no {', '.join(IMAGE_FILES)}", "fill or remove it")
            else:
                label = names.index(folder.name)
                examples[split] += [(os.fsencode(os.path.relpath(image, root)), Listed(label, os.fsencode(image), str(image)))
                                    for image in images]
    shown = tuple(os.fsencode(name).decode("utf-8", "backslashreplace") for name in names)  # a folder's name may be any bytes
    return image_files(config, shown, examples, root, bad)


def _images_by_class(root):
    """{folder: [image files in it]} of the folders in `root`, sorted."""
    def visible(folder):
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))

    return {folder: [path for path in visible(folder) if path.suffix.lower() in IMAGE_FILES and path.is_file()]
            for folder in visible(root) if folder.is_dir()}
