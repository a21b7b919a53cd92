"""Records of a run: metrics.jsonl, timing.jsonl and TensorBoard, each step once however often the run was killed."""

import os
import shutil

import tensorflow as tf

from train_lib.metrics import JsonLines

KINDS = ("train", "validation")  # the folders of event files
# Of a record; all else is a curve in TensorBoard.
NOT_DRAWN = ("kind", "step", "epoch", "examples", "images", "seconds", "train_seconds")
TIMES = ("seconds", "train_seconds", "images", "images_per_second")  # what a timing record holds besides its step


class RunLog:
    """Writes the records of one run; those of a workdir that is not ours to write go nowhere.

    Args:
      workdir: Workdir.
      step: where the run starts or resumes; records beyond it are dropped, and TensorBoard is written anew from the rest.
    """

    def __init__(self, workdir, step):
        if not workdir.is_ours:
            self.metrics = self.timing = JsonLines(os.devnull)
            self._writers = {}
            return
        self.metrics = JsonLines(workdir.path / "metrics.jsonl", ("kind", "step"))
        self.timing = JsonLines(workdir.path / "timing.jsonl", ("step", *TIMES))
        # A test record belongs to the end of a run, so a run that goes on drops it too.
        self.metrics.keep(lambda record: record["step"] <= step and record["kind"] != "test")
        self.timing.keep(lambda record: record["step"] <= step)
        folder = workdir.path / "tensorboard"
        for kind in KINDS:  # and nothing else in it: profiles of an earlier part of the run stay
            shutil.rmtree(folder / kind, ignore_errors=True)
        self._writers = {kind: tf.summary.create_file_writer(str(folder / kind)) for kind in KINDS}
        for record in self.metrics.read():
            self._summarize(record["kind"], record)
        for record in self.timing.read():
            self._summarize("train", record)

    def add_metrics(self, kind, step, epoch, values):
        """Appends one record of kind "train", "validation" or "test"."""
        record = {"kind": kind, "step": step, "epoch": epoch, **values}
        self.metrics.append(record)
        self._summarize(kind, record)

    def add_timing(self, step, values):
        """Appends one record of wall-clock values, which metrics.jsonl must not hold."""
        record = {"step": step, **values}
        self.timing.append(record)
        self._summarize("train", record)

    def _summarize(self, kind, record):
        if kind not in self._writers:
            return
        with self._writers[kind].as_default(step=record["step"]):
            for name, value in record.items():
                if name not in NOT_DRAWN and value is not None:
                    tf.summary.scalar(name, value)

    def flush(self):
        """Makes everything written so far visible to TensorBoard."""
        for writer in self._writers.values():
            writer.flush()


class Stopwatch:
    """Seconds of training and of everything, since the last record and in all. The clock is passed in.

    The first call of the compiled loop traces and compiles; it counts as time, not as throughput, unless there is no other.
    """

    def __init__(self, clock):
        self._clock = clock
        self._warm = False
        self._first = None
        self._restart()

    def _restart(self):
        self._start = self._clock()
        self._train_seconds, self._waited, self._images = 0.0, 0.0, 0

    def add_training(self, seconds, images, waited=0.0):
        """Counts one call of the compiled loop, and the seconds of it that passed between asking for a batch and having it."""
        if not self._warm:
            self._warm = True
            self._first = images / seconds
            return
        self._train_seconds += seconds
        self._waited += waited
        self._images += images

    @property
    def images_per_second(self):
        """Throughput of the training steps since the last record."""
        return self._images / self._train_seconds if self._train_seconds else self._first

    def lap(self):
        """The values of a timing record; starts the next."""
        values = {
            "seconds": self._clock() - self._start,
            "train_seconds": self._train_seconds,
            "images": self._images,
            "images_per_second": self.images_per_second,
            "data_wait_share": self._waited / self._train_seconds if self._train_seconds else None,
        }
        self._first = self.images_per_second
        self._restart()
        return values


def totals_of(timing):
    """Seconds and images/s of a whole run, over all its parts, from its timing records."""
    train_seconds = sum(record["train_seconds"] for record in timing)
    images = sum(record["images"] for record in timing)
    rates = [record["images_per_second"] for record in timing if record["images_per_second"]]
    return {
        "seconds": sum(record["seconds"] for record in timing),
        "images_per_second": images / train_seconds if train_seconds else (rates[-1] if rates else None),
    }
