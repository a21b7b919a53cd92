"""Records of a run: metrics.jsonl, timing.jsonl and TensorBoard. They hold each step once, however often the run was killed."""

import contextlib
import math
import os
import shutil

import tensorflow as tf

from input_pipeline.common.errors import one_line_of
from input_pipeline.common.small_files import UnusableFile, is_of
from train_lib.records.json_lines import METRICS, METRICS_RECORD, TIMING_RECORD, JsonLines

KINDS = ("train", "validation")  # of TensorBoard's event files, each in a folder of its own
# TensorBoard draws a curve for every number of a record except these.
NOT_DRAWN = ("kind", "step", "epoch", "examples", "images", "seconds", "train_seconds")


class RunLog:
    """Writes the records of one run. On a worker other than the chief it writes nothing.

    The run starts or resumes at `step`: later records and result.json are removed, and TensorBoard's files are rewritten from the
    rest. `last`, {kind of record: the last step to keep}, removes more, such as that of an evaluation that the run still has to
    do. Raises UnusableError if the existing records cannot be read or replaced.

    A full disk does not end the run: `log` gets one line, and a record that cannot be written is written with the next one.
    """

    def __init__(self, workdir, step, log=print, last=None):
        self._is_ours, self._log, self._reported = workdir.is_ours, log, {}
        if not self._is_ours:
            self.metrics = self.timing = JsonLines(os.devnull)
            return
        self.metrics = JsonLines(workdir.path / METRICS, METRICS_RECORD)
        self.timing = JsonLines(workdir.path / "timing.jsonl", TIMING_RECORD)
        self.metrics.read(), self.timing.read()  # so that a damaged file is an error before anything is replaced
        workdir.remove_result()
        # Test records have no entry here, because they belong to the end of a run, and this run goes on.
        last = last or {"train": step, "validation": step}
        self.metrics.keep(lambda record: record["step"] <= last.get(record["kind"], -1))
        self.timing.keep(lambda record: record["step"] <= step)
        self._tensorboard, self._writers = workdir.path / "tensorboard", None
        self._flush_events()

    def add_metrics(self, kind, step, epoch, values):
        """Appends one record of kind "train", "validation" or "test"."""
        self._add(self.metrics, kind, {"kind": kind, "step": step, "epoch": epoch, **values})

    def add_timing(self, step, values):
        """Appends one record of wall-clock values. They are not in metrics.jsonl, which is the same for equal runs."""
        self._add(self.timing, "train", {"step": step, **values})

    def _add(self, lines, kind, record):
        if not self._is_ours:
            return
        with self._trying(lines.path):
            lines.append(record)
        if self._writers:  # after a failure, the next `flush` draws this record too
            with self._trying(self._tensorboard):
                self._draw(kind, record)

    @contextlib.contextmanager
    def _trying(self, path):
        """Context manager that logs the reason why `path` cannot be written, once until writing works again."""
        try:
            yield
            self._reported.pop(path, None)
        except (UnusableFile, OSError, tf.errors.OpError) as error:
            reason = error.reason if isinstance(error, UnusableFile) else one_line_of(error)
            if self._reported.get(path) != reason:
                self._log(f"{path}: cannot be written ({reason}); going on, and trying again")
            self._reported[path] = reason
            if path == self._tensorboard:
                self._close_events()

    def result(self, status, state, plan, test_accuracy, stopwatch):
        """Returns the content of result.json for a TrainState at the end of its run, or where the run stopped."""
        best_step = state.validation.best_step
        best = [r.get("accuracy") for r in self.metrics.read() if r["kind"] == "validation" and r["step"] == best_step]
        return {
            "status": status,
            "steps": state.step,
            "epochs": plan.epoch(state.step),
            "best_step": best_step,
            "best_validation_accuracy": best[-1] if best else None,
            "test_accuracy": test_accuracy,
            **totals_of([*self.timing.read(), stopwatch.lap()]),
        }

    def flush(self):
        """Flushes the records to the disk, and makes them visible to TensorBoard.

        Raises UnusableFile if metrics.jsonl or timing.jsonl cannot be written. A failure of TensorBoard's files is only logged.
        """
        if self._is_ours:
            self.metrics.flush()
            self.timing.flush()
            self._flush_events()

    def _flush_events(self):
        """Makes all records visible to TensorBoard. After a failure, its files are written anew, as a copy of the records."""
        with self._trying(self._tensorboard):
            # A writer whose folder was removed reports no error.
            if not self._writers or not all((self._tensorboard / kind).is_dir() for kind in KINDS):
                self._close_events()
                for kind in KINDS:  # anything else in the folder, such as a profile, is left alone
                    shutil.rmtree(self._tensorboard / kind, ignore_errors=True)
                self._writers = {kind: tf.summary.create_file_writer(os.fsencode(self._tensorboard / kind)) for kind in KINDS}
                for record in self.metrics.read():
                    self._draw(record["kind"], record)
                for record in self.timing.read():
                    self._draw("train", record)
            for writer in self._writers.values():
                writer.flush()

    def _draw(self, kind, record):
        if kind not in self._writers:
            return
        with self._writers[kind].as_default(step=record["step"]):
            for name, value in record.items():
                # TensorBoard holds float32. The files hold null for what is not finite, so a rewrite could not draw it either.
                if name not in NOT_DRAWN and is_of(value, (int, float)) and abs(value) <= float(tf.float32.max):
                    tf.summary.scalar(name, value)

    def _close_events(self):
        # Not left to the garbage collector: a writer whose file is gone creates a new one when it is closed.
        for writer in (self._writers or {}).values():
            with contextlib.suppress(OSError, tf.errors.OpError):
                writer.close()
        self._writers = None


def describe_divergence(run, loss, gradient_norm):
    """Describes the update that ended a Run, for result.json. Steps are counted from 0.

    "skipped_in_a_row" includes this update; "loss" and "gradient_norm" are None if they are not finite. What the split's
    `locate_batch` returns about the batch is part of it.
    """
    step, batch_size = run.state.step - 1, run.config.optimization.global_batch_size
    return {
        "step": step,
        "skipped_in_a_row": run.state.skipped_in_a_row,
        "loss": loss if math.isfinite(loss) else None,
        "gradient_norm": gradient_norm if math.isfinite(gradient_norm) else None,
        "split": run.config.data.train_split,
        **run.train_split.locate_batch(run.config.general.seed, step, batch_size),
    }


class Stopwatch:
    """Measures the seconds of training and of everything, since the last record and in total, by a monotonic `clock`.

    The first call of the compiled loop traces and compiles. Its seconds count, but not for the throughput, unless there is no
    other call yet.
    """

    def __init__(self, clock):
        self._clock = clock
        self._rate_before = None  # images/s until a call of this lap is measured; None until the first call of all
        self._start, self._train_seconds, self._waited, self._images = clock(), 0.0, 0.0, 0

    def add_training(self, seconds, images, waited=0.0):
        """Counts one call of the compiled loop. `waited` is how many of its seconds it waited for batches."""
        if self._rate_before is None:
            self._rate_before = images / seconds
            return
        self._train_seconds += seconds
        self._waited += waited
        self._images += images

    @property
    def images_per_second(self):
        """Throughput of the training steps since the last record."""
        return self._images / self._train_seconds if self._train_seconds else self._rate_before

    def lap(self):
        """Returns the values of a timing record and starts the next one."""
        values = {
            "seconds": self._clock() - self._start,
            "train_seconds": self._train_seconds,
            "images": self._images,
            "images_per_second": self.images_per_second,
            "data_wait_share": self._waited / self._train_seconds if self._train_seconds else None,
        }
        self._rate_before = self.images_per_second
        self._start, self._train_seconds, self._waited, self._images = self._clock(), 0.0, 0.0, 0
        return values


def totals_of(timing):
    """Seconds and images/s of a whole run, over all its parts, from its timing records."""
    train_seconds = sum(record["train_seconds"] for record in timing)
    images = sum(record["images"] for record in timing)
    rates = [None, *(record["images_per_second"] for record in timing if record["images_per_second"])]
    return {
        "seconds": sum(record["seconds"] for record in timing),
        "images_per_second": images / train_seconds if train_seconds else rates[-1],
    }
