"""Decoded splits, kept as memory-mapped files, so that the next start need not decode.

A file is a header of 4096 bytes (JSON, filled up with blanks), the images (uint8 [n, height, width, 3]) and the labels
(int32 [n]). Its name says which split it is of, from which folder; the key in its header, what state the source was in. A source
that has changed is decoded again, and its file replaced, so that a split never has more than one.

On opening, the header must be what is expected to the letter, the file as long as it says, and checksums must agree: of all bytes
up to 256 MiB, of a larger file's labels and 256 blocks of 1 MiB, the first, the last and evenly between them. A file that fails
is decoded anew. A file appears under its name by a rename, once it is complete and on the disk, and is never written to
afterwards: of two processes that write at once the later wins, and whoever has the other one mapped keeps it.
"""

import contextlib
import hashlib
import json
import mmap
import os
import pathlib
import re
import tempfile
import time
import zlib

import numpy as np

VERSION = 1  # of the file and of the decoding: raise it whenever the same source would give other bytes
HEADER_BYTES = 4096
BLOCK_BYTES, MOST_BLOCKS = 2**20, 256
ABANDONED_SECONDS = 3600  # an unfinished file that nobody wrote to for so long is of a process that died


def folder_of(cache_dir):
    """The folder that --cache_dir means, a Path; None for an empty one, which means no cache."""
    if cache_dir is None:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        cache_dir = os.path.join(base, "alexnet")
    return pathlib.Path(os.path.expanduser(cache_dir)) if cache_dir else None


class CachedSplit:
    """The file that one decoded split is, or will be, kept in.

    Args:
      folder: Path, need not exist; None: nothing is found and nothing is stored.
      name: of the source.
      split: TFDS slicing syntax.
      shape: (n, height, width, 3) of the images.
      fingerprint: what changes when the source does; made of what JSON has. "place" in it, if any, is what tells two sources of
        one name apart.
    """

    def __init__(self, folder, name, split, shape, fingerprint):
        what = [name, split, list(shape[1:])]
        identity = hashlib.sha256(json.dumps([*what, fingerprint.get("place")]).encode()).hexdigest()
        readable = re.sub(r"[^\w]+", "-", f"{pathlib.PurePath(name).name}-{split}-{shape[1]}x{shape[2]}").strip("-")[:80]
        self.path = folder / f"{readable}-{identity[:16]}.images" if folder else None
        key = hashlib.sha256(json.dumps([VERSION, *what, fingerprint], sort_keys=True).encode()).hexdigest()
        self._expected = {"format": "decoded images", "version": VERSION, "source": name, "split": split, "key": key,
                          "images": list(shape), "bytes": HEADER_BYTES + int(np.prod(shape)) + 4 * shape[0]}

    def find(self, log):
        """(images, labels) as read-only arrays on the mapped file, or None. A file that cannot serve is worth a line to `log`."""
        if self.path is None:
            return None
        try:
            with open(self.path, "rb") as file:
                found, reason = self._open(file)
                if found:
                    return found
        except FileNotFoundError:
            return None
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
        log(f"{self.path}: {reason}; decoding again")
        return None

    def store(self, images, labels, log):
        """Writes the file; where that cannot be done, a line to `log` says why and nothing is left behind."""
        if self.path is None:
            return
        temporary = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._remove_abandoned()
            descriptor, temporary = tempfile.mkstemp(prefix=f"{self.path.name}.", suffix=".tmp", dir=self.path.parent)
            with open(descriptor, "wb") as file:
                self._write(file, images, labels)
            os.replace(temporary, self.path)
            _sync_folder(self.path.parent)
        except OSError as error:
            if temporary:
                with contextlib.suppress(OSError):
                    os.remove(temporary)
            reason = error.strerror or error
            log(f"--cache_dir={self.path.parent}: decoded images not kept ({reason}); going on, the next start decodes again")

    def _write(self, file, images, labels):
        images, labels = np.ascontiguousarray(images), np.ascontiguousarray(labels, "<i4")
        content = self._expected | {"checksum": _checksum(images.reshape(-1), labels)}
        header = json.dumps(content).encode()
        if len(header) > HEADER_BYTES:
            raise OSError(0, "the split's name is too long")
        file.write(header.ljust(HEADER_BYTES))
        file.write(images.reshape(-1))  # not through a mapping: a full disk would end the process by a signal
        file.write(labels)
        file.flush()
        os.fsync(file.fileno())

    def _open(self, file):
        """(images, labels) and None, or None and what is wrong with the file."""
        try:
            header = json.loads(file.read(HEADER_BYTES))
            checksum = header.pop("checksum")
        except (ValueError, KeyError, AttributeError, TypeError):
            return None, "damaged"
        if header != self._expected:
            # Of another state of the source, or of another version of this project.
            same = isinstance(header.get("key"), str) and header.keys() == self._expected.keys()
            return None, "the source has changed" if same and header["key"] != self._expected["key"] else "damaged"
        if os.fstat(file.fileno()).st_size != header["bytes"]:
            return None, "too short or too long"
        # Kept where it is sound: the checksum has brought its pages in, which a second mapping would have to do again.
        images, labels = self._arrays(np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8))
        if _checksum(images.reshape(-1), labels) != checksum:
            return None, "damaged"
        return (images, labels), None

    def _arrays(self, content):
        shape = self._expected["images"]
        end = HEADER_BYTES + int(np.prod(shape))
        return content[HEADER_BYTES:end].reshape(shape), np.frombuffer(content[end:], "<i4")

    def _remove_abandoned(self):
        for path in self.path.parent.glob(f"{self.path.name}.*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                    path.unlink()


def _checksum(pixels, labels):
    """CRC-32 over the labels and the blocks of the images that are looked at."""
    checksum = zlib.crc32(labels)
    starts = range(0, len(pixels), BLOCK_BYTES)
    if len(starts) > MOST_BLOCKS:
        starts = [int(start) for start in np.linspace(0, len(pixels) - BLOCK_BYTES, MOST_BLOCKS)]
    for start in starts:
        checksum = zlib.crc32(pixels[start : start + BLOCK_BYTES], checksum)
    return checksum


def _sync_folder(folder):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
