"""One writer per workdir: the lock that a training run holds from its start to its end. Does not import TensorFlow.

It is a kernel lock (`flock`) on a small file, so it ends with its process, however that ends. The file names its holder, for the
error message of a second run, and for file systems without locks or with locks that other machines cannot see. There, the
holder's heartbeat, which renews the modification time of the file, shows whether the holder is alive.
"""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
from typing import NamedTuple

from input_pipeline.common.errors import UnusableError
from input_pipeline.common.small_files import parse_json

NAME = ".lock"
BEAT_SECONDS = 5.0
SILENCE_SECONDS = 30.0  # longer than one call can delay a heartbeat, and than NFS may show an old modification time
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # the answers of a file system without `flock`


class Holder(NamedTuple):
    """The process that a lock file names; without host and pid if the file does not contain what this module writes."""

    host: str = ""  # name of its machine
    pid: int = 0

    @classmethod
    def myself(cls):
        """This process."""
        return cls(socket.gethostname(), os.getpid())

    @classmethod
    def from_bytes(cls, content):
        """Reads the content of a lock file."""
        with contextlib.suppress(ValueError, TypeError, KeyError):
            values = parse_json(content)
            if isinstance(values["host"], str) and isinstance(values["pid"], int):
                return cls(values["host"], values["pid"])
        return cls()

    def __str__(self):
        return f"process {self.pid} on host {self.host}" if self.pid else "another process"


@contextlib.contextmanager
def locked(folder, log=print):
    """Context manager that makes this process the only writer of a run's folder, which must exist and be writable.

    `log` is called with a line if it takes over the lock of a dead process, or watches for a heartbeat. Raises UnusableError if
    another process writes the folder, or the lock file cannot be used.
    """
    path, over = pathlib.Path(folder) / NAME, threading.Event()
    try:
        descriptor = _take(path, log)
    except OSError as error:
        remedy = "make room or fix its permissions, or remove it if no other process trains there"
        raise UnusableError(f"{path}: cannot be used as a lock ({error.strerror}); {remedy}") from None
    try:
        threading.Thread(target=_beat, args=(descriptor, over), daemon=True).start()
        yield
    finally:
        over.set()
        with contextlib.suppress(OSError):
            path.unlink()  # before unlocking: whoever has already opened the file will notice that it is gone
        os.close(descriptor)


def is_locked(folder):
    """Whether a process of this machine writes a run's folder, by the kernel's lock, so that it is known at once."""
    try:
        with open(pathlib.Path(folder) / NAME, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is none, or no locks on this file system
        return False
    return False


def has_heartbeat(folder):
    """Whether a process of any machine has written a run's folder within the last seconds, by its heartbeat."""
    try:
        return abs(time.time() - (pathlib.Path(folder) / NAME).stat().st_mtime) < SILENCE_SECONDS
    except OSError:
        return False


def _take(path, log):
    """Opens and locks the lock file and writes this process into it; returns its descriptor."""
    while True:
        # Not through a link: the file that it points to belongs to someone else.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW, 0o644)
        try:
            has_kernel_lock = _flock(path, descriptor)
            if _is_in_folder(path, descriptor):
                _check_holder(path, descriptor, has_kernel_lock, log)
            if _is_in_folder(path, descriptor):  # not if its holder has ended since we opened it, and removed it
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(Holder.myself()._asdict()).encode() + b"\n", 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _flock(path, descriptor):
    """Locks the file; returns False if its file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _in_use(path, Holder.from_bytes(os.pread(descriptor, 4096, 0))) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def _is_in_folder(path, descriptor):
    # Link counts would not tell: NFS renames a removed file that is still open.
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    return False


def _check_holder(path, descriptor, has_kernel_lock, log):
    """Raises UnusableError if the process that the lock file names is alive, although no lock of the kernel kept us out."""
    content = os.pread(descriptor, 4096, 0)
    if not content.strip():
        return
    holder = Holder.from_bytes(content)
    # A living process of this machine would have kept the kernel's lock from us.
    if not has_kernel_lock or holder.host not in ("", socket.gethostname()):
        log(f"{path}: names {holder}; watching for {SILENCE_SECONDS:g} s whether it is alive")
        if _beats(path):
            raise _in_use(path, holder)
    log(f"{path}: left by {holder}, which is dead; taken over")


def _beats(path):
    """Whether the modification time of a lock file changes. The value itself does not matter, as clocks of machines differ."""
    times, end = set(), time.monotonic() + SILENCE_SECONDS
    while time.monotonic() < end:
        try:
            with open(path, "rb") as file:  # opening it makes a network file system ask its server
                times.add(os.fstat(file.fileno()).st_mtime_ns)
        except FileNotFoundError:  # its holder has ended
            return False
        if len(times) > 1:
            return True
        time.sleep(min(1.0, SILENCE_SECONDS / 10))
    return False


def _beat(descriptor, over):
    while not over.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(descriptor)


def _in_use(path, holder):
    where = "" if holder.host == socket.gethostname() else f" on {holder.host}"
    stop = f"stop it (kill {holder.pid}{where})" if holder.pid else "stop it"
    return UnusableError(f"--workdir={path.parent}: {holder} writes it; wait until it ends, {stop}, or give another folder")
