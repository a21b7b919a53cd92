"""Records of a run: metrics.jsonl, timing.jsonl and TensorBoard, each step once however often the run was killed."""

import os

from input_pipeline.common.small_files import UnusableFile
from train_lib.records.event_files import EventFiles
from train_lib.records.json_lines import METRICS_RECORD, TIMING_RECORD, JsonLines


class RunLog:
    """Writes the records of one run; those of a workdir that is not ours to write go nowhere.

    A record that cannot be written is said, kept, and tried again with the next one: a full disk does not end the run.

    Args:
      workdir: Workdir.
      step: where the run starts or resumes; result.json and records beyond it are dropped, TensorBoard is written anew.
      log: called with a line about what cannot be written.
      evaluation_owed: whether that of this step is still to be done; a record of it is one that was written before a kill.

    Raises:
      UnusableError: the records that are there cannot be read, or the files not be written even now.
    """

    def __init__(self, workdir, step, log=print, evaluation_owed=False):
        self._is_ours, self._log, self._said = workdir.is_ours, log, {}
        if not self._is_ours:
            self.metrics = self.timing = JsonLines(os.devnull)
            return
        self.metrics = JsonLines(workdir.path / "metrics.jsonl", METRICS_RECORD)
        self.timing = JsonLines(workdir.path / "timing.jsonl", TIMING_RECORD)
        self.metrics.read(), self.timing.read()  # which refuses damaged ones before anything is replaced
        workdir.remove_result()
        # A test record belongs to the end of a run, so a run that goes on drops it too.
        last = {"train": step, "validation": step - evaluation_owed}
        self.metrics.keep(lambda record: record["step"] <= last.get(record["kind"], -1))
        self.timing.keep(lambda record: record["step"] <= step)
        self._events = EventFiles(workdir.path / "tensorboard", self._records)
        self._try(self._events.path, self._events.rewrite)

    def _records(self):
        yield from ((record["kind"], record) for record in self.metrics.read())
        yield from (("train", record) for record in self.timing.read())

    def add_metrics(self, kind, step, epoch, values):
        """Appends one record of kind "train", "validation" or "test"."""
        self._add(self.metrics, kind, {"kind": kind, "step": step, "epoch": epoch, **values})

    def add_timing(self, step, values):
        """Appends one record of wall-clock values, which metrics.jsonl must not hold."""
        self._add(self.timing, "train", {"step": step, **values})

    def _add(self, lines, kind, record):
        if self._is_ours:
            self._try(lines.path, lambda: lines.append(record))
            if self._events.is_open:
                self._try(self._events.path, lambda: self._events.add(kind, record))

    def _try(self, path, write):
        """Calls `write`. Says once why it fails, until it does not."""
        try:
            write()
            self._said.pop(path, None)
        except UnusableFile as error:
            if self._said.get(path) != error.reason:
                self._log(f"{path}: cannot be written ({error.reason}); going on, and trying again")
            self._said[path] = error.reason

    def result(self, status, state, plan, test_accuracy, stopwatch):
        """The content of result.json, for a TrainState that has come to its end, or as far as it goes."""
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
        """Makes everything written so far visible to TensorBoard, and safe on the disk, TensorBoard's files apart.

        Raises:
          UnusableFile: a record cannot be written.
        """
        if self._is_ours:
            self.metrics.flush()
            self.timing.flush()
            self._try(self._events.path, self._events.flush)


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
