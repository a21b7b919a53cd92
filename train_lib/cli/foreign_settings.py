"""Variables and files of the user that were not meant for this project: they neither change a run nor prevent its start.

What may be meant, such as TF_XLA_FLAGS or CUDA_VISIBLE_DEVICES, is left to the user, and a run records it in environment.json.
"""

import contextlib
import importlib
import logging
import os
import subprocess
import sys
import warnings

# Beginnings of the names of variables that may change results. Those of Terraform also begin with TF_, and may hold passwords.
RECORDED = ("TF_", "XLA_", "CUDA_", "CUDNN_", "CUBLAS_", "NCCL_", "NVIDIA_TF32_OVERRIDE", "NVIDIA_VISIBLE_DEVICES", "OMP_",
            "KMP_", "MKL_", "ONEDNN_", "DNNL_", "TFDS_")
NOT_RECORDED = ("TF_VAR_", "TF_TOKEN_", "TF_CLI_", "TF_CPP_")
NO_FOLDER = os.path.join(os.devnull, "keras")  # Keras can neither read nor write below it
IMPORTED = "imported"
# A shell command that reads all of its input. TensorFlow begins the line with the reason with an F.
WATCH = f"""text=$(cat); case $text in *{IMPORTED}) exit;; esac
echo "error: the process ended while TensorFlow was imported:
$(echo "$text" | grep '^F[0-9]' || echo "$text" | tail -n 5)" >&2"""


def overrule():
    """Overrules, for this process and its children, what other libraries would obey. Call it before they are imported."""
    os.environ["MPLBACKEND"] = "agg"  # cells of a notebook pass on a backend that only exists there
    os.environ.pop("TF_FUNCTION_JIT_COMPILE_DEFAULT", None)  # --xla decides
    os.environ.pop("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", None)  # a remedy for old versions; today's lack what it names
    if any(option.startswith("error") for option in sys.warnoptions):  # PYTHONWARNINGS: libraries warn during their imports
        warnings.simplefilter("ignore")
        os.environ.pop("PYTHONWARNINGS", None)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns about each line of a matplotlibrc, and about its cache


def import_tensorflow(quietly):
    """Imports TensorFlow, which imports Keras, without Keras's configuration file and variables, and looks for devices.

    `quietly` hides the lines that TensorFlow 2.21 prints at any log level. They look like errors on any machine without a GPU.
    """
    users = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("KERAS_")}
    os.environ |= {"KERAS_BACKEND": "tensorflow", "KERAS_HOME": NO_FOLDER}
    with _stderr_only_at_the_end() if quietly else contextlib.nullcontext():
        importlib.import_module("tensorflow").config.list_physical_devices()
    # A network that you add may use pretrained weights: Keras keeps them where it would keep them without us.
    folder = users.get("KERAS_HOME") or os.path.join(os.path.expanduser("~"), ".keras")
    importlib.import_module("keras.src.backend.config")._KERAS_DIR = folder


@contextlib.contextmanager
def _stderr_only_at_the_end():
    """Hides what is printed on stderr inside. If the process ends inside, as for a bad TF_XLA_FLAGS, a watcher prints it."""
    sys.stderr.flush()
    stderr = os.dup(2)
    watcher = subprocess.Popen(["sh", "-c", WATCH], stdin=subprocess.PIPE, start_new_session=True)
    os.dup2(watcher.stdin.fileno(), 2)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.write(2, IMPORTED.encode())
        os.dup2(stderr, 2)
        os.close(stderr)
        watcher.stdin.close()
        watcher.wait()


def recorded(ours):
    """{name: value} of the variables that the user has set and that may change results; `ours` are names that we have set."""
    return {name: value for name, value in sorted(os.environ.items())
            if name.startswith(RECORDED) and not name.startswith(NOT_RECORDED) and name not in ours}
