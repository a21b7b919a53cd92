"""Trains AlexNet, and what you swap in for it, with a hand-written TensorFlow 2 loop.

    python main.py                          the quickstart: trains on the embedded data set
    python main.py --helpshort              every flag, in groups

From the flags comes a configuration, and MODES[mode] runs it. TensorFlow is imported once the flags are validated.
"""

import bdb
import contextlib
import importlib
import os
import sys

from absl import app, flags, logging

from input_pipeline.common.errors import ExpectedError, one_line
from train_lib.cli import environment, foreign_settings
from train_lib.cli import flags as train_flags
from train_lib.cli.signals import stop_request
from train_lib.distribution.cluster import check_settings, read_cluster
from train_lib.records.lock import locked
from train_lib.records.workdir import open_workdir

MODES = {"train": "train_lib.train:train", "evaluate": "train_lib.evaluate:evaluate",
         "predict": "train_lib.modes.predict:predict", "export": "train_lib.modes.export.saved_model:export",
         "benchmark": "train_lib.modes.benchmark.measure:benchmark", "report": "train_lib.modes.report.page:report",
         "sweep": "train_lib.modes.sweep.run_all:sweep", "compare": "train_lib.modes.compare.page:make_comparison"}
WITHOUT_TENSORFLOW = ("report", "sweep", "compare")  # modes

train_flags.define(flags.FLAGS)


def parse_flags(argv):
    """Turns the command line into an ExperimentConfig."""
    sys.stdout, sys.stderr = environment.Unfailing(sys.stdout), environment.Unfailing(sys.stderr)
    if any(argument in train_flags.HELP_FLAGS for argument in argv[1:]):
        print(train_flags.help_text())
        end_process(0)
    try:
        return train_flags.parse(argv, flags.FLAGS)
    except (ExpectedError, flags.Error) as error:
        sys.exit(report_error(str(error), getattr(error, "exit_code", 2)))


def main(config):
    """Runs the chosen mode and ends the process with its exit code."""
    stop_request.listen()
    try:
        with stop_request.raising():
            exit_code = run_mode(config)
    except ExpectedError as error:
        exit_code = report_error(str(error), error.exit_code)
    except OSError as error:
        if error.filename is None:
            raise
        exit_code = report_error(f"{error.filename}: {error.strerror}; fix this, and start again", 3)
    except bdb.BdbQuit:
        print("left from the debugger; what came after the last checkpoint is lost", file=sys.stderr)
        exit_code = 130
    except BaseException:  # some libraries turn the KeyboardInterrupt of a signal into an error of their own
        if not stop_request.raised:
            raise
        print(f"{stop_request.received}: stopped with nothing to save; the same command starts again", file=sys.stderr)
        exit_code = 75
    end_process(exit_code)


def report_error(text, exit_code):
    """Prints an error on one line and returns the exit code."""
    print(f"error: {one_line(text)}", file=sys.stderr)
    return exit_code


def end_process(exit_code):
    """Ends the process without the interpreter's clean-up, which would wait for tf.data threads (see `strategy.distribute`)."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def run_mode(config):
    """Runs the chosen mode and returns its exit code. Of all modes, only training uses a cluster and locks its workdir."""
    is_training = config.general.mode == "train"
    cluster = read_cluster(os.environ) if is_training else None
    if cluster:
        check_settings(config, cluster)
    workdir = open_workdir(config, is_chief=not cluster or cluster.rank == 0)
    with locked(workdir.path) if is_training and workdir.is_ours else contextlib.nullcontext():
        mode = import_mode(config, cluster)
        return mode(config, workdir, cluster) if cluster else mode(config, workdir)


def import_mode(config, cluster):
    """Imports TensorFlow and the chosen mode, and returns the mode's function."""
    with stop_request.finishing():  # signals are deferred, because interrupting the import can corrupt TensorFlow
        prepare_environment(config, cluster)
        module, function = MODES[config.general.mode].split(":")
        mode = getattr(importlib.import_module(module), function)
    stop_request.raise_if_received()
    return mode


def prepare_environment(config, cluster):
    """Sets what only counts before libraries are imported, and imports TensorFlow if the mode needs it."""
    foreign_settings.overrule()
    logging.set_verbosity(logging.ERROR)  # TFDS warns of each folder that is not prepared
    if config.general.mode in WITHOUT_TENSORFLOW:
        return
    # TensorFlow turns oneDNN on by itself only on CPUs with AVX512-VNNI. On others, a step is 2.2 times as fast with it.
    environment.set_default("TF_ENABLE_ONEDNN_OPTS", "1")
    environment.set_default("TF_GPU_THREAD_MODE", "gpu_private")  # threads that launch kernels do not wait behind other work
    quietly = "TF_CPP_MIN_LOG_LEVEL" not in os.environ
    if quietly:
        # TensorFlow logs a page of errors for a lost worker, and some lines per damaged image. We print one line.
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3" if cluster or config.general.mode == "predict" else "2"
    foreign_settings.import_tensorflow(quietly)


if __name__ == "__main__":
    environment.open_closed_streams()
    stop_request.listen()
    app.run(main, flags_parser=parse_flags)
