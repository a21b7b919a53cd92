"""What a sweep prints while it runs: bars on a terminal, a line per start and end elsewhere."""

import contextlib
import os
import sys

from tqdm import tqdm

from input_pipeline.common.small_files import parse_json
from train_lib.records.terminal import number, percent, say

TAIL_BYTES = 2**16  # of metrics.jsonl; the newest validation record is in them unless train records are very frequent


class Display:
    """Shows the runs of a sweep. On a terminal, it draws a bar for the sweep and a line for each of `num_slots`."""

    def __init__(self, num_runs, num_ended, num_slots):
        self._num_runs, self._bar, self._lines = num_runs, None, []
        if sys.stderr.isatty():
            self._bar = tqdm(total=num_runs, initial=num_ended, unit="run", dynamic_ncols=True, leave=False)
            self._lines = [tqdm(bar_format="{desc}", dynamic_ncols=True, leave=False) for _ in range(num_slots)]

    def started(self, index, folder):
        """A run starts."""
        if self._bar is None:
            say(f"{index + 1}/{self._num_runs} {folder}: started")

    def ended(self, index, folder, text):
        """A run has ended."""
        if self._bar is not None:
            self._bar.update()
        say(f"{index + 1}/{self._num_runs} {folder}: {text}")

    def refresh(self, progress):
        """Draws the lines; `progress(slot)` is the text of one."""
        for slot, line in enumerate(self._lines):
            line.set_description_str(progress(slot))
        if self._bar is not None:
            self._bar.refresh()

    def close(self):
        """Removes the bars."""
        for bar in self._lines + [self._bar] * (self._bar is not None):
            bar.close()


def progress_of(path, epochs):
    """How far the run in a folder is, in words, by the end of its metrics.jsonl."""
    newest = {"train": {}, "validation": {}}
    with contextlib.suppress(OSError), open(path / "metrics.jsonl", "rb") as file:
        file.seek(-min(TAIL_BYTES, os.fstat(file.fileno()).st_size), os.SEEK_END)
        for line in file:
            with contextlib.suppress(ValueError, KeyError, TypeError):  # the first and the last may be half a line
                record = parse_json(line)
                newest[record["kind"]] = record
    epoch = max(record.get("epoch", 0) for record in newest.values())
    accuracy, loss = newest["validation"].get("accuracy"), newest["train"].get("loss")
    return f"  {path.name}: epoch {epoch:.3g}/{epochs:g}, validation accuracy {percent(accuracy)}, train loss {number(loss)}"
