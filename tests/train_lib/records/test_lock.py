"""One writer per workdir: a second run is refused at once, a dead process's lock is taken over, whatever the file says."""

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from helpers import ROOT

import main as main_module
from input_pipeline.common.errors import UnusableError
from train_lib import config as config_lib
from train_lib.records import lock
from train_lib.records.lock import Holder, locked

ELSEWHERE = {"host": "elsewhere.example", "pid": 17, "born": "x"}  # as an earlier version wrote it
# Holds the lock of a folder, with a quick heartbeat, until it is killed.
HOLD = """
import sys, time
from train_lib.records import lock
lock.BEAT_SECONDS = 0.05
with lock.locked(sys.argv[1]): print('held', flush=True); time.sleep(600)
"""
# main.py on a machine where importing TensorFlow fails: a second run must be refused before the import.
WITHOUT_TENSORFLOW = """
import sys
sys.modules["tensorflow"] = None
import main
main.app.run(main.main, flags_parser=main.parse_flags)
"""
# Adds 1 to a number in a file under the lock, as often as its argument says. Two writers at a time would lose an addition.
ADD = """
import pathlib, sys
from input_pipeline.common.errors import UnusableError
from train_lib.records.lock import locked
folder, times = pathlib.Path(sys.argv[1]), int(sys.argv[2])
while times:
    try:
        with locked(folder, log=lambda line: None):
            number = int((folder / "number").read_text())
            (folder / "number").write_text(str(number + 1))
            times -= 1
    except UnusableError:
        pass
"""


def python(code, *arguments):
    """A Python process with the project on its path."""
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)


@contextlib.contextmanager
def held(folder):
    """Yields another process that holds the lock."""
    process = python(HOLD, folder)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def holder_of(folder):
    return Holder.from_bytes((folder / ".lock").read_bytes())


@pytest.fixture
def lines():
    """What `locked(..., log=lines.append)` logs."""
    return []


@pytest.fixture
def quick(monkeypatch):
    """Watches for a heartbeat for 0.3 s only."""
    monkeypatch.setattr(lock, "SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)


def test_the_file_names_the_writer_and_disappears_with_it(tmp_path, lines):
    with locked(tmp_path, lines.append):
        assert holder_of(tmp_path) == Holder.myself()
        assert (Holder.myself().host, Holder.myself().pid) == (socket.gethostname(), os.getpid())
    with pytest.raises(KeyboardInterrupt), locked(tmp_path, lines.append):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir()) and not lines


def test_a_second_run_is_refused_before_tensorflow_is_imported(tmp_path):
    with held(tmp_path) as process:
        before = (tmp_path / ".lock").read_bytes()
        second = python(WITHOUT_TENSORFLOW, f"--workdir={tmp_path}")
        out, error = second.communicate(timeout=60)
        host = socket.gethostname()
        assert second.returncode == 3 and out == ""
        assert error == (f"error: --workdir={tmp_path}: process {process.pid} on host {host} writes it; wait until it ends, "
                         f"stop it (kill {process.pid}), or give another folder\n")
        assert (tmp_path / ".lock").read_bytes() == before and [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize("mode", ["evaluate", "benchmark"])
def test_other_modes_read_a_run_while_it_is_written(tmp_path, monkeypatch, mode):
    monkeypatch.setattr(main_module, "import_mode", lambda mode, cluster: lambda config, workdir: 0)
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    with held(tmp_path):
        before = (tmp_path / ".lock").read_bytes()
        assert main_module.run_mode(config_lib.from_values({"mode": mode, "workdir": str(tmp_path)})) == 0
        assert (tmp_path / ".lock").read_bytes() == before
        with pytest.raises(UnusableError, match="writes it"):
            main_module.run_mode(config_lib.from_values({"workdir": str(tmp_path)}))


def test_only_the_chief_locks(tmp_path, monkeypatch):
    """The other workers of a job write nothing, and their own chief's lock would refuse them."""
    monkeypatch.setattr(main_module, "import_mode", lambda mode, cluster: lambda config, workdir, cluster: 0)
    addresses = ["127.0.0.1:1", "127.0.0.1:2"]
    config = config_lib.from_values({"workdir": str(tmp_path), "global_batch_size": 128})
    for rank in (0, 1):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
        monkeypatch.setenv("TF_CONFIG", json.dumps(task))
        with locked(tmp_path) if rank else contextlib.nullcontext():
            assert main_module.run_mode(config) == 0


@pytest.mark.parametrize("reaped", [True, False])
def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, lines, reaped):
    """At once, and also before its parent has noticed: a zombie still has a process id."""
    with held(tmp_path) as process:
        os.kill(process.pid, signal.SIGKILL)
        if reaped:
            process.wait()
        else:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with locked(tmp_path, lines.append):
            assert holder_of(tmp_path) == Holder.myself()
    host = socket.gethostname()
    assert lines == [f"{tmp_path / '.lock'}: left by process {process.pid} on host {host}, which is dead; taken over"]


@pytest.mark.parametrize("content", [
    b"garbage", b"\xff\xfe\x00", b"[]", b"{}", b'{"host": 5, "pid": 1}', b'{"host": "h", "pid": "1"}', b'{"pid": 1e999}',
    b"[" * 9999, b'{"more": 1}', b"5", b"\n", b"", b"\0" * 100_000,
])
def test_garbage_that_no_one_holds_is_taken_over(tmp_path, content):
    (tmp_path / ".lock").write_bytes(content)
    with locked(tmp_path, log=lambda line: None):
        assert holder_of(tmp_path) == Holder.myself()


def test_garbage_that_someone_holds_refuses_all_the_same(tmp_path):
    with held(tmp_path):
        (tmp_path / ".lock").write_bytes(b"garbage")
        with pytest.raises(UnusableError, match="another process writes it; wait until it ends, stop it, or"), locked(tmp_path):
            pass


@pytest.mark.parametrize("spoil", [
    lambda path: path.mkdir(), lambda path: path.symlink_to(path.parent / "no" / "where"), lambda path: path.symlink_to(path)])
def test_a_file_that_cannot_be_a_lock(tmp_path, spoil):
    spoil(tmp_path / ".lock")
    with pytest.raises(UnusableError, match=r"\.lock: cannot be used as a lock .*remove it"), locked(tmp_path):
        pass


def test_a_writer_on_another_machine_is_recognized_by_its_heartbeat(tmp_path, quick, lines):
    """This machine's kernel may not see the lock of another machine."""
    path = tmp_path / ".lock"
    path.write_text(json.dumps(ELSEWHERE))
    over = threading.Event()
    with open(path) as file:
        beating = threading.Thread(target=lock._beat, args=(file.fileno(), over))
        beating.start()
        try:
            with pytest.raises(UnusableError, match=r"process 17 on host elsewhere.example writes it; .*\(kill 17 on elsewhere"):
                locked(tmp_path, lines.append).__enter__()
        finally:
            over.set()
            beating.join()
    assert json.loads(path.read_text()) == ELSEWHERE
    with locked(tmp_path, lines.append):
        assert holder_of(tmp_path) == Holder.myself()
    assert [("watching" in line, "which is dead" in line) for line in lines] == [(True, False), (True, False), (False, True)]


def test_the_writer_beats(tmp_path, quick):
    with locked(tmp_path):
        first, deadline = (tmp_path / ".lock").stat().st_mtime_ns, time.monotonic() + 10
        while (tmp_path / ".lock").stat().st_mtime_ns == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path, monkeypatch, lines, number):
    """The heartbeat of the process that the file names decides. A later process with the same number does not count."""
    def flock(descriptor, operation):
        raise OSError(number, os.strerror(number))

    with held(tmp_path) as process:
        monkeypatch.setattr(fcntl, "flock", flock)
        with pytest.raises(UnusableError, match=f"process {process.pid} on"), locked(tmp_path, lines.append):
            pass
        assert Holder(socket.gethostname(), process.pid) == holder_of(tmp_path)
    monkeypatch.setattr(lock, "SILENCE_SECONDS", 0.3)
    (tmp_path / ".lock").write_text(json.dumps(Holder.myself()._asdict()))  # as if a dead process had had our number
    with locked(tmp_path, lines.append):
        assert holder_of(tmp_path) == Holder.myself()
    assert [("watching" in line, "which is dead" in line) for line in lines] == [(True, False), (True, False), (False, True)]


def test_a_file_that_its_holder_removes_between_our_opening_and_locking_it(tmp_path, monkeypatch):
    """A lock on a file that is no longer in the folder would keep no one out."""
    original = fcntl.flock

    def late(descriptor, operation):
        monkeypatch.setattr(fcntl, "flock", original)
        (tmp_path / ".lock").unlink()
        original(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(tmp_path):
        assert holder_of(tmp_path) == Holder.myself()


def test_a_writer_on_another_machine_that_ends_while_it_is_watched(tmp_path, quick):
    """It removes its file, so there is nothing left to watch or to lock."""
    (tmp_path / ".lock").write_text(json.dumps(ELSEWHERE))
    with locked(tmp_path, lambda line: (tmp_path / ".lock").unlink(missing_ok=True)):
        assert holder_of(tmp_path) == Holder.myself()


def test_of_many_one_writes_at_a_time(tmp_path):
    (tmp_path / "number").write_text("0")
    processes = [python(ADD, tmp_path, 20) for _ in range(3)]
    for process in processes:
        _, error = process.communicate(timeout=60)
        assert process.returncode == 0, error
    assert (tmp_path / "number").read_text() == "60"
