"""Checkpoints that are either complete or do not exist.

A save goes into a temporary sibling folder. Every file and the folder are flushed to the disk, the manifest with sizes and
SHA-256 comes last, and one rename turns the folder into a checkpoint. `best` and `latest` are small text files, which are also
replaced by a rename. A checkpoint is verified against its manifest before any variable is assigned. It holds only tensors and
JSON, so one from a stranger cannot run code. Cleaning up only ever deletes what this project wrote.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil

import numpy as np
import tensorflow as tf

from input_pipeline.common.errors import SettingError, UnusableError
from input_pipeline.common.small_files import read_file, read_json
from train_lib.checkpoints.tensor_files import read_tensors

MANIFEST = "manifest.json"
PROGRESS = "progress.json"
WRITTEN = {PROGRESS, "ckpt.index", "ckpt.data-00000-of-00001"}
STEP_FOLDER = re.compile(r"step-([0-9]{8}|[1-9][0-9]{8,})")
_LEFTOVER = re.compile(rf"\.{STEP_FOLDER.pattern}\.(tmp|old)|\.(best|latest)\.tmp")
_FILE_OF_A_CHECKPOINT = re.compile(r"ckpt\..*|progress\.json|manifest\.json")


class DamagedCheckpoint(Exception):
    """A checkpoint folder does not agree with its manifest. The message names the file and what is wrong."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint. `description` is the content of progress.json: configuration, classes, and the host's state."""

    folder: pathlib.Path
    step: int
    description: dict

    def tensors(self, prefix=""):
        """{name: NumPy array} of all tensors whose names start with `prefix`."""
        return read_tensors(self.folder / "ckpt", prefix)

    def evaluated_weights(self):
        """{name: NumPy array} of the network's weights as they were evaluated: the averages, if the run has some."""
        averages = {name.replace("ema/", "model/", 1): tensor for name, tensor in self.tensors("ema/").items()}
        return self.tensors("model/") | averages


class CheckpointStore:
    """The checkpoints in a workdir's folder `checkpoints`. The `keep` newest are kept besides the best, 0: all.

    `log` is called with one line about each damaged checkpoint that is passed over.
    """

    def __init__(self, folder, keep=0, log=print):
        self.folder, self._keep, self._log = pathlib.Path(folder), keep, log

    def steps(self):
        """The steps that have a folder, in ascending order, valid or not."""
        if not self.folder.is_dir():
            return []
        matches = (STEP_FOLDER.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def remove_leftovers(self):
        """Removes what a killed save or clean-up left behind, and puts back a checkpoint that it was about to replace."""
        for path in [path for path in self.folder.glob(".*") if _LEFTOVER.fullmatch(path.name)]:
            replaced = path.with_name(path.stem.removeprefix("."))
            if path.suffix == ".old" and not replaced.exists():
                path.rename(replaced)
            else:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()

    def save(self, step, tensors, description, is_best, also_keep=None):
        """Writes a checkpoint, points `latest` (and `best`, if it is the best) to it, and removes those that need not be kept.

        `tensors` is {name: array}, `description` the JSON object for progress.json, `also_keep` a step or None. Raises OSError or
        tf.errors.OpError if the file system refuses; nothing half-written is left then.
        """
        folder = self.folder / f"step-{step:08d}"
        temporary = beside(folder, "tmp")
        try:
            if not self.folder.is_dir():
                self.folder.mkdir(parents=True)
                _flush(self.folder.parent)
            self.remove_leftovers()
            temporary.mkdir()
            _write_files(temporary, step, tensors, description)
            if folder.exists():  # a run that went back to an older checkpoint saves the same step again
                folder.rename(beside(folder, "old"))
            temporary.rename(folder)
            _flush(self.folder)
            for pointer in ("latest", "best") if is_best else ("latest",):
                self._point(pointer, folder.name)
        finally:
            self.remove_leftovers()
        names = {step: f"step-{step:08d}" for step in self.steps()}
        newest = list(names.values())[-self._keep :]  # with keep=0, [-0:] is all of them
        kept = {*newest, self._pointed("best"), self._pointed("latest"), names.get(also_keep)}
        for name in names.values():
            if name not in kept:
                remove_checkpoint(self.folder / name)

    def repair_pointers(self, latest, best):
        """Repairs `latest` and `best` if the process died after saving a checkpoint but before updating them.

        Returns whether the checkpoint of step `best` (or None) exists and is valid. If not, the pointer `best` stays as it is.
        """
        pointers = {"latest": f"step-{latest:08d}"}
        with contextlib.suppress(DamagedCheckpoint):
            if best is not None:
                pointers["best"] = verify(self.folder / f"step-{best:08d}").folder.name
        for pointer, name in pointers.items():
            if self._pointed(pointer) != name:
                self._point(pointer, name)
        return "best" in pointers

    def _point(self, pointer, name):
        temporary = beside(self.folder / pointer, "tmp")
        temporary.write_text(name + "\n")
        _flush(temporary)
        temporary.replace(self.folder / pointer)
        _flush(self.folder)

    def _pointed(self, pointer):
        with contextlib.suppress(OSError, ValueError):
            return read_file(self.folder / pointer, largest=100).decode().strip()
        return None

    def newest(self):
        """The newest valid checkpoint; None if there are none. Raises UnusableError if there are some, but none is valid."""
        damage = None
        for step in reversed(self.steps()):
            try:
                return verify(self.folder / f"step-{step:08d}")
            except DamagedCheckpoint as error:
                damage = str(error)
                self._log(f"damaged checkpoint passed over: {error}")
        if damage:
            raise UnusableError(f"{self.folder}: no valid checkpoint ({damage}); restore one, or give another --workdir")
        return None

    def find(self, which):
        """The checkpoint that --checkpoint names: "best", "latest" or a step. Raises UnusableError if it is gone or damaged."""
        if not self.steps():
            raise UnusableError(f"{self.folder}: holds no checkpoint; give the --workdir of a run that has saved one")
        if which == "latest":
            return self.newest()
        name = f"step-{int(which):08d}" if which.isdecimal() else self._pointed(which)
        there = ", ".join(map(str, self.steps()))
        if name is None or not STEP_FOLDER.fullmatch(name) or not (self.folder / name).is_dir():
            raise UnusableError(f"--checkpoint={which}: not in {self.folder}; there are {there}")
        try:
            return verify(self.folder / name)
        except DamagedCheckpoint as error:
            raise UnusableError(f"--checkpoint={which}: {error}; there are {there}") from None


def beside(path, suffix):
    """The hidden sibling that a file or folder is written as ("tmp") or moved to ("old"). A user's copies have other names."""
    return path.with_name(f".{path.name}.{suffix}")


def remove_checkpoint(folder):
    """Removes the folder of a checkpoint, unless it is a link or holds anything else, such as a user's notes."""
    is_ours = folder.is_dir() and not folder.is_symlink()
    if is_ours and all(_FILE_OF_A_CHECKPOINT.fullmatch(path.name) for path in folder.iterdir()):
        gone = beside(folder, "tmp")  # rename first: a kill must not leave half a checkpoint under its name
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _write_files(folder, step, tensors, description):
    names = sorted(tensors)
    arrays = [np.asarray(tensors[name]) for name in names]
    prefix = os.fsencode(folder / "ckpt")
    tf.raw_ops.SaveV2(prefix=prefix, tensor_names=names, shape_and_slices=[""] * len(names), tensors=arrays)
    (folder / PROGRESS).write_text(json.dumps(description, indent=1) + "\n")
    files = sorted(folder.iterdir())
    for path in files:
        _flush(path)
    listed = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in files}
    (folder / MANIFEST).write_text(json.dumps({"step": step, "files": listed}, indent=1) + "\n")
    _flush(folder / MANIFEST)
    _flush(folder)


def _flush(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(folder, renamed=False):
    """Compares a checkpoint folder with its manifest and returns it as a Checkpoint. With `renamed`, it may have any name.

    Raises DamagedCheckpoint if a file is missing or has another size or content, or the manifest cannot be read.
    """
    folder = pathlib.Path(folder)
    try:
        manifest = read_json(folder / MANIFEST)
        step, files = manifest["step"], manifest["files"]
        if not (renamed or folder.name == f"step-{step:08d}") or set(files) != WRITTEN:
            raise DamagedCheckpoint(f"{folder / MANIFEST} describes another checkpoint")
        for name, entry in files.items():
            path = folder / name
            if not path.is_file():  # reading a pipe or a device might never end
                raise DamagedCheckpoint(f"{path} is no plain file")
            if path.stat().st_size != entry["bytes"]:
                raise DamagedCheckpoint(f"{path} has {path.stat().st_size} bytes, {entry['bytes']} were written")
            if _sha256(path) != entry["sha256"]:
                raise DamagedCheckpoint(f"{path} has changed since it was written (SHA-256 differs)")
        return Checkpoint(folder, step, read_json(folder / PROGRESS))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint(f"{folder} cannot be read ({type(error).__name__}: {error})") from None


def find_initial(path):
    """The checkpoint that --init_from names: a checkpoint folder, or the best of a workdir.

    Raises SettingError if there is none, UnusableError if it is damaged.
    """
    folder = pathlib.Path(os.path.expanduser(path))
    store = CheckpointStore(folder / "checkpoints")
    try:
        if os.path.exists(folder / MANIFEST):
            return verify(folder.resolve(), renamed=True)
        if store.steps():
            return store.find("best")
    except DamagedCheckpoint as error:
        raise UnusableError(f"--init_from={path}: {error}") from None
    except UnusableError:
        remedy = f"the run has no best checkpoint that can be read; give one of the folders in {store.folder}"
        raise UnusableError(f"--init_from={path}: {remedy}") from None
    raise SettingError("init_from", path, "holds no checkpoint; give a run's workdir or a checkpoint folder")
