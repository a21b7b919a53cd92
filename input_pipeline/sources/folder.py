"""--dataset=folder:PATH: image files in one folder per class, inside one folder per split or without splits."""

import collections
import os
import pathlib
import re
import unicodedata

from input_pipeline.common.errors import SettingError, UnusableError
from input_pipeline.config import IMAGE_FILES
from input_pipeline.sources.base import WITHOUT_SPLITS, first_of
from input_pipeline.sources.listed import Listed, image_files
from input_pipeline.sources.tree import Folder

SPLIT_NAMES = frozenset((
    "train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation"))  # in any case
TO_CONVERT = frozenset((  # images that are not decoded here
    ".heic", ".heif", ".avif", ".tif", ".tiff", ".svg", ".jp2", ".jxl", ".tga", ".psd", ".dng", ".cr2", ".nef", ".arw", ".ppm"))
_BY_CLASS = "sort the images into <split>/<class>/"


def open_source(config, path, bad):
    """Opens PATH/<split>/<class>/ or PATH/<class>/; images below a class folder, at any depth, belong to the class.

    `_find_splits` decides which of the two it is; the latter is the split `train`. Files with the endings IMAGE_FILES are read.
    Classes are the sorted names of the class folders in the training split, or in all splits if there is none. Names are compared
    and shown in the Unicode form NFC. The order of the examples is fixed and mixes the classes. The source has notes about all
    that is not read, except for hidden files. Raises SettingError if there are no images, or PATH is not the folder above the
    splits; UnusableError if a folder cannot be read, a class of the training split is empty, or a link has no target.
    """
    root = Folder(pathlib.Path(path))
    try:
        others = _other_files(root)
        splits = _find_splits(config, root)
        labels, decides = _find_classes(splits)
        found = {split: _fault(folders, labels, decides) for split, folders in splits.items()}
        faults = {split: fault for split, fault in found.items() if fault}
        examples = {split: _examples(folders, labels, bad) for split, folders in splits.items() if split not in faults}
    except OSError as error:
        raise UnusableError(f"{error.filename}: cannot be read ({error.strerror}); change its permissions") from None
    notes = [f"the split {split} cannot be used: {fault}" for split, fault in faults.items()]
    for split in examples:
        if missing := sorted(labels.keys() - _class_names(splits[split])):
            notes.append(f"{split} has no image of {len(missing)} of {len(labels)} classes: {first_of(missing)}")
    notes += [*_notes_on_layout(root, splits), *_notes_on_files(root, splits, others)]
    for folder in root.content.folders:
        if _is_split(folder) and not folder.holds_images:
            faults[_nfc(folder)] = f"{folder.path} contains no image; fill it, or give another split"
    shown = tuple(os.fsencode(name).decode("utf-8", "backslashreplace") for name in labels)  # a folder's name may be any bytes
    return image_files(config, shown, examples, root.path, bad, faults, notes)


def _nfc(folder):
    """The name of a folder in the one Unicode form in which names are compared; macOS and Linux write é in different ways."""
    return unicodedata.normalize("NFC", folder.name)


def _is_split(folder):
    return folder.name.lower() in SPLIT_NAMES


def _class_folders(folders):
    return [part for folder in folders for part in folder.class_folders]


def _class_names(folders):
    return set(map(_nfc, _class_folders(folders)))


def _names_of_several(folders):
    """The names of class folders that occur in two or more of `folders`, such as cat in fold1/cat and fold2/cat."""
    counts = collections.Counter(name for folder in folders for name in _class_names([folder]))
    return sorted(name for name, count in counts.items() if count > 1)


def _other_files(root):
    """Counts the files in other formats below `root`, {ending: how many}. Raises UnusableError if a link has no target.

    A link without a target stands for a folder if it is where a split or class is expected, or if it has no ending. Otherwise it
    counts as another file; `_examples` deals with links of image files.
    """
    others = collections.Counter()
    for folder in root.walk():
        others.update(folder.content.others)
        for name, reason in folder.content.dangling.items():
            ending = os.path.splitext(name)[1].lower()
            if folder.depth < 2 or not ending:
                raise UnusableError(f"{folder.path / name}: {reason}; restore what it points to, or remove the link")
            others[ending] += 1
    return others


def _has_named_splits(root):
    """Whether `root` is PATH of PATH/<split>/<class>/, because a folder with the name of a split has class folders.

    If there is only one such folder, and others have class folders too, it shares a class with one of them. Otherwise, such as in
    train/steam/, bus/city/ and plane/jet/, `train` is a class.
    """
    divided = [folder for folder in root.content.folders if folder.class_folders]
    named, others = [folder for folder in divided if _is_split(folder)], [folder for folder in divided if not _is_split(folder)]
    return bool(named) and (len(named) > 1 or not others or bool(_class_names(named) & _class_names(others)))


def _asked_splits(config):
    """The names of the splits that the flags ask for, except names that are those of splits anyway."""
    texts = "+".join((config.train_split, config.validation_split, config.test_split))
    return {name for name in re.sub(r"\[[^]]*\]", "", texts).split("+") if name.lower() not in SPLIT_NAMES}


def _find_splits(config, root):
    """The folders of each split, {name: [Folder]}; {"train": [root]} if the folders in `root` are classes.

    They are splits by `_has_named_splits`, or if the flags ask for a split with the name of one that has class folders. Raises
    SettingError if there is no image, or PATH is above the folder that is meant; UnusableError if the splits have no classes.
    """
    folders = root.class_folders  # here, they may be those of splits
    if not folders:
        direct = f", but {len(root.content.images)} directly in it" if root.content.images else ""
        reason = f"has no {', '.join(IMAGE_FILES)} in <split>/<class>/ or <class>/{direct}"
        raise SettingError("dataset", config.dataset, f"{reason}; give the folder above the splits or classes")
    divided = [folder for folder in folders if folder.class_folders]
    are_splits = _has_named_splits(root) or bool(_asked_splits(config) & set(map(_nfc, divided)))
    for folder in divided if not are_splits or len(divided) == 1 else ():
        if _has_named_splits(folder) or (len(folders) == 1 and not are_splits and not folder.content.images):
            reason = f"{folder.path} contains the splits or classes itself: {first_of(sorted(_class_names([folder])))}"
            raise SettingError("dataset", config.dataset, f"{reason}; give folder:{folder.path}, or {_BY_CLASS}")
    if not are_splits and all(map(_is_split, folders)):
        names = first_of(folder.name for folder in folders)
        raise UnusableError(f"{root.path}: contains images in {names}, but no class folders there; {_BY_CLASS}")
    if (are_splits or len(divided) == len(folders)) and all(map(_is_split, _class_folders(divided))):
        names = first_of(sorted(_class_names(divided)))
        raise UnusableError(f"{divided[0].path}: contains {names}, which are splits, where classes are expected; {_BY_CLASS}")
    if not are_splits:
        return {WITHOUT_SPLITS: [root]}
    splits = {}
    for folder in folders:
        splits.setdefault(_nfc(folder), []).append(folder)
    return splits


def _find_classes(splits):
    """The classes, {name: label}, and the name of the training split that decides about them; None if all splits decide.

    Raises UnusableError if one of the classes has no image.
    """
    trains = [split for name in ("train", "training") for split in sorted(splits, reverse=True) if split.lower() == name]
    decides = next((split for split in trains if _class_names(splits[split])), None)
    folders = splits[decides] if decides else [folder for folders in splits.values() for folder in folders]
    written = {}  # as in the file system, because that decides the order
    for part in _class_folders(folders):
        written.setdefault(_nfc(part), []).append(part.name)
    for empty in (part for folder in folders if folder.class_folders for part in folder.content.folders):
        if _nfc(empty) not in written:
            others = sum((folder.content.others for folder in empty.walk()), collections.Counter())
            reason = f"is the folder of a class and contains no {', '.join(IMAGE_FILES)}"
            reason += f", but {_by_ending(others)}" if others else ""
            raise UnusableError(f"{empty.path}: {reason}; fill it or remove it")
    names = sorted(written, key=lambda name: min(written[name]))
    return {name: label for label, name in enumerate(names)}, decides


def _fault(folders, labels, decides):
    """Why a split cannot be used; empty if it can. Its folders are usually one."""
    if not _class_folders(folders):
        count = sum(len(folder.content.images) for folder in folders)
        reason = f"{folders[0].path} contains {_number(count, 'image')}, but no class folders"
        return f"{reason}; sort them into {folders[0].path}/<class>/, or give another split"
    for part in _class_folders(folders):
        if _nfc(part) not in labels:
            return f"{part.path} is a class that {decides} does not have; rename it as in {decides}, or remove it"
    return ""


def _examples(folders, labels, bad):
    """The examples of a split, as `image_files` takes them. Notes image files that are links without a target in `bad`."""
    examples = []
    for part in _class_folders(folders):
        for folder in part.walk():
            for name in folder.content.images:
                path = f"{folder.path}/{name}"
                if reason := folder.content.broken.get(name):
                    bad.add(path, reason, "restore or remove it")
                else:
                    listed = Listed(labels[_nfc(part)], os.fsencode(path), path)
                    examples.append((os.fsencode(f"{folder.relative}/{name}"), listed))
    return examples


def _notes_on_layout(root, splits):
    """Lines about classes that may be meant to be splits."""
    if root not in splits.get(WITHOUT_SPLITS, ()):
        return
    for folder in filter(_is_split, root.class_folders):
        yield f"{folder.path} is read as a class, not as a split"
    if names := _names_of_several(root.class_folders):
        yield (f"the folders in {root.path} are read as classes, with the images in their subfolders ({first_of(names)}); "
               f"--train_split={root.class_folders[0].name} would read them as splits")


def _notes_on_files(root, splits, others):
    """Lines about images beside class folders, files in `others`, other formats, and links that are not followed."""
    beside = [root, *(folder for folders in splits.values() for folder in folders if folder is not root and folder.class_folders)]
    if strays := [f"{folder.path}/{name}" for folder in beside for name in folder.content.images]:
        yield f"skipped {_number(len(strays), 'image')} beside class folders, the first is {strays[0]}"
    if others:
        convert = sorted(TO_CONVERT & set(others))
        remedy = f"; convert {', '.join(convert)} to PNG or JPEG" if convert else ""
        yield f"skipped {_number(sum(others.values()), 'file')} in other formats: {_by_ending(others)}{remedy}"
    if loops := [f"{folder.path}/{name}" for folder in root.walk() for name in folder.content.loops]:
        yield f"skipped {_number(len(loops), 'link')} to a folder that contains the link, the first is {loops[0]}"


def _by_ending(others):
    """Counts of files such as "2 .heic, 1 .txt", the most frequent ending first."""
    ranked = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    return first_of(f"{count} {ending or 'without ending'}" for ending, count in ranked)


def _number(count, noun):
    return f"{count} {noun}{'s' * (count != 1)}"
