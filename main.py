"""Trains AlexNet, and what you swap in for it, with a hand-written TensorFlow 2 loop.

    python main.py                          the quickstart: trains on the embedded data set
    python main.py --helpshort              every flag, in groups
"""

import contextlib
import importlib
import os
import sys

from absl import app, flags, logging

from input_pipeline.common.errors import ExpectedError, one_line
from train_lib.cli import environment
from train_lib.cli import flags as train_flags
from train_lib.cli.signals import stop_request
from train_lib.distribution.cluster import check_settings, read_cluster
from train_lib.records.lock import locked
from train_lib.records.terminal import Unfailing
from train_lib.records.workdir import open_workdir

MODES = {"train": "train_lib.train:train", "evaluate": "train_lib.evaluate:evaluate",
         "predict": "train_lib.modes.predict:predict", "export": "train_lib.modes.export.saved_model:export",
         "benchmark": "train_lib.modes.benchmark.measure:benchmark", "report": "train_lib.modes.report.page:report"}
WITHOUT_TENSORFLOW = ("report",)  # modes

train_flags.define(flags.FLAGS)


def parse_flags(argv):
    """Turns the command line into a configuration, before TensorFlow is imported."""
    if any(argument in train_flags.HELP_FLAGS for argument in argv[1:]):
        print(train_flags.help_text())
        sys.exit(0)
    try:
        return train_flags.parse(argv, flags.FLAGS)
    except (ExpectedError, flags.Error) as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 2))


def find_cluster(config):
    """The Cluster to train on, judged; None for this machine alone, on which all other modes run."""
    cluster = read_cluster(os.environ) if config.general.mode == "train" else None
    if cluster:
        check_settings(config, cluster)
    return cluster


def prepare_environment(config, cluster):
    """Environment variables that only count before TensorFlow is imported; the user's own settings win."""
    # TensorFlow turns oneDNN on by itself only on CPUs with AVX512-VNNI; elsewhere the step is 2.2 times as fast with it.
    environment.set_default("TF_ENABLE_ONEDNN_OPTS", "1")
    # A user's keras.json may name another backend; the loop is written for this one.
    os.environ["KERAS_BACKEND"] = "tensorflow"
    logging.set_verbosity(logging.WARNING)
    if "TF_CPP_MIN_LOG_LEVEL" not in os.environ:
        # A lost worker makes TensorFlow log a page of errors, a damaged image a line or two; ours is one line.
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3" if cluster or config.general.mode == "predict" else "2"
        import_tensorflow_quietly()


def import_tensorflow_quietly():
    """Imports TensorFlow and looks for devices without the lines that TF 2.21 writes whatever its log level.

    They look like errors on any machine without a GPU. Set TF_CPP_MIN_LOG_LEVEL=0 to see them.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            importlib.import_module("tensorflow").config.list_physical_devices()
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def import_mode(config, cluster):
    """The chosen mode's function. Imports TensorFlow, whose C++ parts a KeyboardInterrupt could break: a signal waits so long."""
    with stop_request.finishing():
        if config.general.mode not in WITHOUT_TENSORFLOW:
            prepare_environment(config, cluster)
        module, function = MODES[config.general.mode].split(":")
        found = getattr(importlib.import_module(module), function)
    stop_request.raise_if_received()
    return found


def run_mode(config):
    """Runs the chosen mode, a training run as the only one that writes its workdir; returns the exit code."""
    cluster = find_cluster(config)
    workdir = open_workdir(config, is_chief=not cluster or cluster.rank == 0)
    writes_a_run = config.general.mode == "train" and workdir.is_ours
    with locked(workdir.path) if writes_a_run else contextlib.nullcontext():
        mode = import_mode(config, cluster)
        return mode(config, workdir, cluster) if cluster else mode(config, workdir)


def main(config):
    """Runs the chosen mode and exits with its code."""
    stop_request.listen()
    sys.stdout, sys.stderr = Unfailing(sys.stdout), Unfailing(sys.stderr)
    try:
        with stop_request.raising():
            exit_code = run_mode(config)
    except ExpectedError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        exit_code = error.exit_code
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {one_line(f'{error.filename}: {error.strerror}')}; mend it, and start again", file=sys.stderr)
        exit_code = 3
    except BaseException:
        if not stop_request.raised:  # by which some libraries make an error of their own
            raise
        print(f"{stop_request.received}: stopped with nothing to save; the same command starts again", file=sys.stderr)
        exit_code = 75
    # Without the interpreter's clean-up, which would wait for tf.data threads (see `train_lib.distribution.strategy.distribute`).
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


if __name__ == "__main__":
    stop_request.listen()
    app.run(main, flags_parser=parse_flags)
