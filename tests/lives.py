"""Runs main.py again and again, in processes forked from one that has imported TensorFlow, and ends each at a chosen moment.

No test hook in the project: the forked process wraps the functions whose calls are counted, and sends the signal to itself.
Forking is sound here, because until then no operation has run: TensorFlow has made no runtime and no thread (checked).
"""

import contextlib
import importlib
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

# What touches the disk, for a moment named by "files".
FILE_OPERATIONS = ("os:fsync", "os:rename", "os:replace", "os:mkdir", "os:unlink", "os:rmdir", "pathlib:Path.write_text",
                   "tensorflow:raw_ops.SaveV2")


class Lives:
    """The process that forks; a context manager.

    Args:
      folder: for what the processes print.
    """

    def __init__(self, folder):
        self._folder = folder
        self._numbers = itertools.count(1)

    def __enter__(self):
        root = pathlib.Path(__file__).resolve().parent.parent
        # One thread in NumPy's BLAS: its others would be threads at the fork.
        settings = {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow", "OPENBLAS_NUM_THREADS": "1",
                    "TF_ENABLE_ONEDNN_OPTS": "1", "PYTHONPATH": str(root)}
        self._process = subprocess.Popen(
            [sys.executable, __file__], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root,
            env=os.environ | settings)
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def live(self, *arguments, moment=None):
        """One run of main.py; returns its exit code (negative: the signal that ended it), what it wrote to stdout, and to stderr.

        `moment`: None; {"seconds": from the start on} for a SIGKILL from outside; or what `strike_at` takes.
        """
        output = [str(self._folder / f"life-{next(self._numbers):03d}.{kind}") for kind in ("out", "err")]
        order = {"arguments": list(map(str, arguments)), "output": output, "moment": moment}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return code, *(pathlib.Path(path).read_text() for path in output)


def strike_at(where, signal_name="SIGKILL", count=1, after=False, torn=False, delay=None, within=None, until=None, times=1):
    """Wraps functions of this process so that one call of them sends it a signal.

    Args:
      where: "module:name" or "module:Class.name" of a function, or a list of them, all counted together.
      signal_name: of the signal.
      count: which call.
      after: whether the call is done before the signal.
      torn: whether the call, of Path.write_text, is left half done.
      delay: None, or seconds from the call to the signal; the call meanwhile goes on.
      within: function in which alone calls count. `until`: function from whose first call on none counts any more.
      times: how many signals.
    """
    import tensorflow

    calls, inside, over = itertools.count(1), [within is None], [False]

    def strike():
        for _ in range(times):
            os.kill(os.getpid(), getattr(signal, signal_name))

    def counted(function):
        def wrapper(*arguments, **options):
            if not inside[0] or over[0] or next(calls) != count:
                return function(*arguments, **options)
            if torn and function.__name__ == "write_text":
                function(arguments[0], arguments[1][: len(arguments[1]) // 2])
                strike()
            if delay is not None:
                threading.Timer(delay, strike).start()
            elif not after:
                strike()
            try:
                return function(*arguments, **options)
            finally:  # also after a call that fails, such as to remove a file that is not there
                if after:
                    strike()

        return tensorflow.autograph.experimental.do_not_convert(wrapper)

    def entered(function):
        def wrapper(*arguments, **options):
            inside[0] = True
            try:
                return function(*arguments, **options)
            finally:
                inside[0] = False

        return wrapper

    def closed(function):
        def wrapper(*arguments, **options):
            over[0] = True
            return function(*arguments, **options)

        return wrapper

    for name in [where] if isinstance(where, str) else where:
        _wrap(name, counted)
    if within:
        _wrap(within, entered)
    if until:
        _wrap(until, closed)


def _wrap(name, wrapper):
    module, _, path = name.partition(":")
    owner = importlib.import_module(module)
    *owners, attribute = path.split(".")
    for part in owners:
        owner = getattr(owner, part)
    setattr(owner, attribute, wrapper(getattr(owner, attribute)))


def _serve():
    import main
    import train_lib.evaluate
    import train_lib.train  # noqa: F401

    for line in sys.stdin:
        threads = os.listdir("/proc/self/task")
        assert len(threads) == 1, f"{len(threads)} threads: a forked process would miss all but one"
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            _live(main, order)
        moment = order["moment"] or {}
        if "seconds" in moment:
            time.sleep(moment["seconds"])
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _live(main, order):
    for number, path in enumerate(order["output"], 1):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
    try:
        if order["moment"] and "where" in order["moment"]:
            strike_at(**order["moment"])
        main.main(main.parse_flags(["main.py", *order["arguments"]]))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # main.main does not return


if __name__ == "__main__":
    _serve()
