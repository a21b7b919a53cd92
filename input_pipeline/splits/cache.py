"""Keeps decoded splits as memory-mapped files, so that the next start does not decode again.

A file is a header of 4096 bytes (JSON, padded with blanks), the images (uint8 [n, height, width, 3]) and the labels (int32 [n]).
Its name identifies the split and the folder of the data; the key in the header identifies the state of the data. If the data has
changed, it is decoded again and the file is replaced, so that a split never has more than one file.

To be used, a file must have exactly the expected header, the right length and the right checksum. Up to 256 MiB, the checksum
covers all bytes; in a larger file the labels and 256 blocks of 1 MiB, from the first to the last at equal distances.

A file gets its name by a rename after it is complete and on the disk, and is never changed afterwards. If several processes need
it at once, one decodes and the others wait. Without locks all decode, the last one wins, and the other files live on as long as a
process has them mapped.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import pathlib
import re
import tempfile
import time
import zlib

import numpy as np

from input_pipeline.common.small_files import parse_json

# Of the format and of the decoding; raise it whenever the same source would give other bytes. 2: photos are turned upright.
VERSION = 2
HEADER_BYTES = 4096
BLOCK_BYTES, MOST_BLOCKS = 2**20, 256
ABANDONED_SECONDS = 3600  # if nothing was written to an unfinished file for so long, its process died


def folder_of(cache_dir):
    """The folder of --cache_dir, a Path; None, which means no cache, if it is empty or in a home folder that does not exist."""
    if cache_dir is None:
        cache_dir = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "alexnet")
    folder = os.path.expanduser(cache_dir)
    return pathlib.Path(folder) if folder and not folder.startswith("~") else None


class CachedSplit:
    """The file of one decoded split, whether it exists or not. `shape` is that of the images, (n, height, width, 3).

    If `folder` is None, nothing is found or stored. `fingerprint` is a JSON value that changes if the data changes; its "place",
    if any, distinguishes sources of the same `name`.
    """

    def __init__(self, folder, name, split, shape, fingerprint):
        what = [name, split, list(shape[1:])]
        identity = hashlib.sha256(json.dumps([*what, fingerprint.get("place")]).encode()).hexdigest()
        readable = re.sub(r"[^\w]+", "-", f"{pathlib.PurePath(name).name}-{split}-{shape[1]}x{shape[2]}").strip("-")[:80]
        self.path = folder / f"{readable}-{identity[:16]}.images" if folder else None
        key = hashlib.sha256(json.dumps([VERSION, *what, fingerprint], sort_keys=True).encode()).hexdigest()
        self._expected = {"format": "decoded images", "version": VERSION, "source": name, "split": split, "key": key,
                          "images": list(shape), "bytes": HEADER_BYTES + math.prod(shape) + 4 * shape[0]}

    def find(self, log):
        """(images, labels) as read-only arrays on the mapped file, or None. Logs a line if the file exists but is unusable."""
        if self.path is None:
            return None
        try:
            with open(self.path, "rb") as file:
                return self._open(file)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return None
        except (OSError, ValueError) as error:
            reason = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else error
            log(f"{self.path}: {reason}; decoding again")
            return None

    @contextlib.contextmanager
    def decoding(self, log):
        """Context manager for one process that decodes the split and stores it, while others that need it wait here.

        It gives what `find` returns after the waiting. If that is None, because examples were skipped, all go on at once.
        """
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError, AttributeError):  # no folder, one that cannot be written, or no locks
                self.path.parent.mkdir(parents=True, exist_ok=True)
                path = self.path.with_suffix(".lock")
                file = stack.enter_context(open(path, "wb"))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    stack.callback(path.unlink, missing_ok=True)
                except BlockingIOError:
                    log(f"waiting for another process that decodes the same images ({path})")
                    fcntl.flock(file, fcntl.LOCK_SH)
                    fcntl.flock(file, fcntl.LOCK_UN)
            yield self.find(lambda line: None)  # the first call has logged what is wrong

    def store(self, images, labels, log):
        """Writes the file. If that fails, logs one line that says why, and leaves nothing behind."""
        if self.path is None:
            return
        temporary = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for path in self.path.parent.glob(f"{self.path.name}.*.tmp"):
                with contextlib.suppress(OSError):
                    if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                        path.unlink()
            images, labels = np.ascontiguousarray(images).reshape(-1), np.ascontiguousarray(labels, "<i4")
            header = json.dumps(self._expected | {"checksum": _checksum(images, labels)}).encode()
            if len(header) > HEADER_BYTES:
                raise OSError(0, "the split's name is too long")
            descriptor, temporary = tempfile.mkstemp(prefix=f"{self.path.name}.", suffix=".tmp", dir=self.path.parent)
            with open(descriptor, "wb") as file:
                # Written, not mapped: if the disk is full, writing to a mapping kills the process by a signal.
                file.writelines((header.ljust(HEADER_BYTES), images, labels))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except OSError as error:
            if temporary:
                with contextlib.suppress(OSError):
                    os.remove(temporary)
            reason = error.strerror or error
            log(f"--cache_dir={self.path.parent}: decoded images not kept ({reason}); going on, the next start decodes again")

    def _open(self, file):
        """(images, labels). Raises ValueError, whose text says what is wrong with the file."""
        try:
            header = parse_json(file.read(HEADER_BYTES))
            checksum, key = header.pop("checksum"), header["key"]
        except (ValueError, KeyError, AttributeError, TypeError):
            raise ValueError("damaged") from None
        if header != self._expected:
            raise ValueError("damaged" if key == self._expected["key"] else "the source has changed")
        if os.fstat(file.fileno()).st_size != header["bytes"]:
            raise ValueError("too short or too long")
        content = np.memmap(file, np.uint8, "r").view(np.ndarray)
        pixels, labels = content[HEADER_BYTES : -4 * header["images"][0]], content[-4 * header["images"][0] :].view("<i4")
        if _checksum(pixels, labels) != checksum:
            raise ValueError("damaged")
        return pixels.reshape(header["images"]), labels


def _checksum(pixels, labels):
    """CRC-32 of the labels and of the blocks of the images that are checked."""
    checksum = zlib.crc32(labels)
    starts = range(0, len(pixels), BLOCK_BYTES)
    if len(starts) > MOST_BLOCKS:
        starts = [int(start) for start in np.linspace(0, len(pixels) - BLOCK_BYTES, MOST_BLOCKS)]
    for start in starts:
        checksum = zlib.crc32(pixels[start : start + BLOCK_BYTES], checksum)
    return checksum
