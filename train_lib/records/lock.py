"""One writer a workdir: the lock that a training run holds from its first moment to its last. Knows no TensorFlow.

The lock is the kernel's (`flock` on a small file), so that it ends with its process, however that ends. The file says who holds
it, for the one that is refused, and for file systems whose locks other machines do not see: there the holder's heartbeat, the
file's time of change, tells whether it lives.
"""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import pathlib
import socket
import threading
import time

from input_pipeline.common.errors import UnusableError

NAME = ".lock"
BEAT_SECONDS = 5.0
SILENCE_SECONDS = 30.0  # longer than a process can be kept from beating by one call, and than NFS shows an old time of change
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what a file system without `flock` answers


@dataclasses.dataclass(frozen=True)
class Holder:
    """The process that a lock file names.

    Attributes:
      host: its machine's name, "" where the file does not say.
      pid: its process id there, 0 where the file does not say.
      born: when the kernel started it, None where that is not known; with the pid it names one process only.
    """

    host: str = ""
    pid: int = 0
    born: str | None = None

    @classmethod
    def myself(cls):
        """This process."""
        return cls(socket.gethostname(), os.getpid(), _born(os.getpid()))

    @classmethod
    def from_bytes(cls, content):
        """What a lock file says, a Holder without host and pid where that is nothing of use."""
        try:
            holder = cls(**json.loads(content))
            if isinstance(holder.host, str) and isinstance(holder.pid, int) and isinstance(holder.born, str | None):
                return holder
        except (ValueError, TypeError, RecursionError):
            pass
        return cls()

    def __str__(self):
        return f"process {self.pid} on host {self.host}" if self.pid else "another process"

    def is_here(self):
        """Whether it was a process of this machine."""
        return self.host == socket.gethostname()

    def lives_here(self):
        """Whether it is a process of this machine that lives, and not another that was given its number."""
        return self.is_here() and _born(self.pid) is not None and _born(self.pid) == self.born


def _born(pid):
    """What tells a process from a later one of the same number: the boot, and the ticks since then. None where it is dead."""
    try:
        status = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return None if status[0] in "ZX" else f"{boot} {status[19]}"


@contextlib.contextmanager
def locked(folder, log=print):
    """Context manager in which this process is the only one that writes a run's folder.

    Args:
      folder: the workdir; it is there and can be written.
      log: called with a line where the lock of a dead process is taken over, or another machine's is watched.

    Raises:
      UnusableError: another process writes it, or the lock file cannot be used.
    """
    path, descriptor, over = pathlib.Path(folder) / NAME, None, threading.Event()
    try:
        descriptor = _open_and_lock(path, log)
        threading.Thread(target=_beat, args=(descriptor, over), daemon=True).start()
        yield
    finally:
        over.set()
        if descriptor is not None:
            with contextlib.suppress(OSError):
                path.unlink()  # while it is locked: whoever opened it before finds that it is no longer the folder's
            os.close(descriptor)


def _open_and_lock(path, log):
    """`_take`, with its OSError turned into the one line that names the file."""
    try:
        return _take(path, log)
    except OSError as error:
        remedy = "make room or mend its permissions, or remove it if no other process trains there"
        raise UnusableError(f"{path}: cannot be used as a lock ({error.strerror}); {remedy}") from None


def _take(path, log):
    """Opens and locks the lock file, and writes this process into it; returns its descriptor."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW, 0o644)  # what a link names is not ours
        try:
            kernel_locks = _flock(descriptor, path)
            if not _is_still(path, descriptor):  # its holder removed it between our opening and locking
                os.close(descriptor)
                continue
            _check(path, descriptor, kernel_locks, log)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(dataclasses.asdict(Holder.myself())).encode() + b"\n", 0)
            return descriptor
        except BaseException:
            os.close(descriptor)
            raise


def _flock(descriptor, path):
    """Locks the file; returns whether its file system has locks at all."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _in_use(path, _read(descriptor)) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def _is_still(path, descriptor):
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    return False


def _check(path, descriptor, kernel_locks, log):
    """Raises UnusableError where a process that the lock file names lives, though the kernel gave us the lock."""
    content = os.pread(descriptor, 4096, 0)
    if not content.strip():
        return
    holder = Holder.from_bytes(content)
    if holder.is_here() or (kernel_locks and not holder.host):
        if holder.lives_here():
            raise _in_use(path, holder)
    else:
        log(f"{path}: names {holder}; looking for {SILENCE_SECONDS:g} s whether it lives")
        if _beats(path):
            raise _in_use(path, holder)
    log(f"{path}: left by {holder}, which is dead; taken over")


def _beats(path):
    """Whether the time of change of a lock file moves on, by its own clock: those of two machines may differ."""
    before, end = _changed(path), time.monotonic() + SILENCE_SECONDS
    while time.monotonic() < end:
        time.sleep(min(1.0, SILENCE_SECONDS / 10))
        if _changed(path) != before:
            return True
    return False


def _changed(path):
    with open(path, "rb") as file:  # opened anew, upon which a network file system asks its server
        return os.fstat(file.fileno()).st_mtime_ns


def _beat(descriptor, over):
    while not over.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(descriptor)


def _read(descriptor):
    return Holder.from_bytes(os.pread(descriptor, 4096, 0))


def _in_use(path, holder):
    stop = f"stop it (kill {holder.pid}{'' if holder.is_here() else f' on {holder.host}'})" if holder.pid else "stop it"
    return UnusableError(f"--workdir={path.parent}: {holder} writes it; wait until it ends, {stop}, or give another folder")
