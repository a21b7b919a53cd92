"""A tree of folders and image files, with links: what --dataset=folder:PATH reads."""

import collections
import errno
import functools
import os
import pathlib
from typing import NamedTuple

from input_pipeline.config import IMAGE_FILES, is_hidden

_NO_TARGET = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


class Content(NamedTuple):
    """What is directly in a folder, sorted by name, without names that are hidden."""

    folders: list  # of Folder
    images: list  # the names of image files, by their endings, also of the broken ones
    broken: dict  # {name of an image: what is wrong with it}: a link without a target, or no file
    dangling: dict  # {name: what is wrong with it}: other links without a target, which may have been folders
    others: collections.Counter  # counts the other files by their endings in lower case
    loops: list  # the names of links to a folder that contains the link, which are not followed


class Folder:
    """A folder below PATH. It is listed when its `content` is first asked for, which may raise OSError.

    `path` is where it was reached, perhaps through links. `relative` is the same below PATH, which has `depth` 0.
    """

    def __init__(self, path, above=None):
        """`above` is the Folder that contains this one."""
        self.path, self.name = path, path.name
        self.relative = f"{above.relative}/{path.name}".lstrip("/") if above else ""
        self.depth = above.depth + 1 if above else 0
        self.identity = _identity(path)
        around = above.around | {above.identity} if above else frozenset()
        if above is None or path.is_symlink():
            around |= {_identity(parent) for parent in pathlib.Path(os.path.realpath(path)).parents}
        self.around = around  # the identities of the folders that contain this one

    @functools.cached_property
    def content(self):
        """The Content of this folder."""
        content = Content([], [], {}, {}, collections.Counter(), [])
        with os.scandir(self.path) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if not is_hidden(entry.name):
                    self._sort(entry, content)
        return content

    @functools.cached_property
    def holds_images(self):
        """Whether there are images in this folder or below."""
        return any(folder.content.images for folder in self.walk())

    @functools.cached_property
    def class_folders(self):
        """The folders directly in this one that hold images."""
        return [folder for folder in self.content.folders if folder.holds_images]

    def walk(self):
        """This folder and all below it. Follows links, but yields each real folder only once."""
        seen, waiting = set(), [self]
        while waiting:
            folder = waiting.pop()
            if folder.identity not in seen:
                seen.add(folder.identity)
                yield folder
                waiting += reversed(folder.content.folders)

    def _sort(self, entry, content):
        """Adds an os.DirEntry to the part of `content` where it belongs. Asks the file system only about links and folders."""
        name, reason = entry.name, ""
        try:
            if entry.is_symlink():
                entry.stat()  # raises if there is no target
            is_folder, is_file = entry.is_dir(), entry.is_file()
        except OSError as error:
            if error.errno not in _NO_TARGET:
                raise
            is_folder = is_file = False
            leads = "leads back to itself" if error.errno == errno.ELOOP else "does not exist"
            reason = f"is a link to {os.readlink(self.path / name)}, which {leads}"
        if is_folder:
            folder = Folder(self.path / name, self)
            if folder.identity in {*self.around, self.identity}:
                content.loops.append(name)
            else:
                content.folders.append(folder)
        elif name.lower().endswith(IMAGE_FILES):
            content.images.append(name)
            if not is_file:
                content.broken[name] = reason or "is neither a file nor a folder"
        elif reason:
            content.dangling[name] = reason
        else:
            content.others[os.path.splitext(name)[1].lower()] += 1


def _identity(path):
    """What a folder has in common with itself when it is reached on another way."""
    state = os.stat(path)
    return state.st_dev, state.st_ino
