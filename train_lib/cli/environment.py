"""The environment of this process: variables, output streams, and a description of the machine."""

import contextlib
import os
import platform
import sys

from train_lib.cli.foreign_settings import recorded

_set_here = set()


def set_default(name, value):
    """Sets an environment variable, unless the user has set it."""
    if name not in os.environ:
        os.environ[name] = value
        _set_here.add(name)


def of_the_user():
    """A copy of the environment without what `set_default` set, for a process that must have TensorFlow's defaults."""
    return {name: value for name, value in os.environ.items() if name not in _set_here}


def open_closed_streams():
    """Opens /dev/null in place of closed standard streams, before another file of this process gets their descriptors."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for descriptor, (name, mode) in enumerate({"stdin": "r", "stdout": "w", "stderr": "w"}.items()):
        if getattr(sys, name) is None:  # Python found it closed
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8"))


class Unfailing:
    """A text stream that ignores errors of writing: neither a full disk nor a reader that has gone ends a run.

    Characters that its encoding lacks are escaped: names of files and classes come from outside.
    """

    def __init__(self, stream):
        self._stream = stream
        if hasattr(stream, "reconfigure"):  # not if a notebook has replaced it
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        """Writes as much as is possible. The rest stays in the stream's buffer and is retried with the next text."""
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self):
        """Flushes as much as is possible."""
        with contextlib.suppress(OSError):
            self._stream.flush()


def describe_machine():
    """{"tensorflow", "keras", "python", "cpu", "cores", "gpus", "onednn", "settings"} of this process.

    "onednn" is TF_ENABLE_ONEDNN_OPTS, "settings" are variables that the user has set and that may change results.
    """
    import keras
    import tensorflow as tf

    gpus = tf.config.get_visible_devices("GPU")
    onednn = os.environ.get("TF_ENABLE_ONEDNN_OPTS", "TensorFlow's default")
    return {
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "python": platform.python_version(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpus": [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus],
        "onednn": f"{onednn} (set by this project)" if "TF_ENABLE_ONEDNN_OPTS" in _set_here else onednn,
        "settings": recorded(_set_here),
    }


def _cpu_model():
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or a kernel without that line
        return platform.processor() or platform.machine()
