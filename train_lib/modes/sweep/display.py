"""What a sweep prints: bars on a terminal, a line per start and end elsewhere, and the table at the end."""

import contextlib
import os
import sys

from tqdm import tqdm

from input_pipeline.common.small_files import parse_json
from train_lib.cli.flags import flag_text
from train_lib.records.terminal import number, percent

TAIL_BYTES = 2**16  # of metrics.jsonl; the newest validation record is in them unless train records are very frequent


class Display:
    """Shows the runs of a sweep. On a terminal, `refresh` draws a bar for the sweep and a line for each Slot."""

    def __init__(self, num_runs, num_finished, slots, is_terminal=None):
        self._bars = None
        if sys.stderr.isatty() if is_terminal is None else is_terminal:
            total = tqdm(total=num_runs, initial=num_finished, unit="run", dynamic_ncols=True)
            self._bars = {slot: tqdm(total=0, bar_format="{desc}", dynamic_ncols=True) for slot in range(slots)} | {None: total}

    def started(self, run, counted):
        """A run starts; `counted` is its place in the sweep."""
        if self._bars is None:
            self.say(f"{counted} {run.folder}: started")

    def ended(self, run, counted, text):
        """A run has ended."""
        if self._bars is not None:
            self._bars[None].update()
        self.say(f"{counted} {run.folder}: {text}")

    def say(self, text):
        """Prints a line on stdout, above the bars."""
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    def refresh(self, running, sweep_path):
        """Draws the bars; `running` is {slot number: (SweptRun, ...)}."""
        for slot, bar in (self._bars or {}).items():
            if slot is None:
                bar.refresh()
            else:
                bar.set_description_str(_progress(running[slot][0], sweep_path) if slot in running else "")

    def close(self):
        """Removes the bars."""
        for bar in (self._bars or {}).values():
            bar.leave = False
            bar.close()


def _progress(run, sweep_path):
    newest = {"train": {}, "validation": {}}
    with contextlib.suppress(OSError), open(sweep_path / run.folder / "metrics.jsonl", "rb") as file:
        file.seek(-min(TAIL_BYTES, os.fstat(file.fileno()).st_size), os.SEEK_END)
        for line in file:
            with contextlib.suppress(ValueError, KeyError, TypeError):  # the first and the last may be half a line
                record = parse_json(line)
                newest[record["kind"]] = record
    epoch = max((record.get("epoch", 0) for record in newest.values()), default=0)
    parts = [f"epoch {epoch:.3g}/{run.config.schedule.epochs:g}"]
    parts += [f"validation accuracy {percent(newest['validation']['accuracy'])}"] if newest["validation"] else []
    parts += [f"train loss {number(newest['train'].get('loss'))}"] if newest["train"] else []
    return f"  {run.folder}: {', '.join(parts)}"


def table(runs, outcomes):
    """The settings and accuracies of the runs as text, one line each. `outcomes` are the entries of sweep.json."""
    rows = [(*runs[0].settings, "validation", "test", "")]
    for run, outcome in zip(runs, outcomes, strict=True):
        accuracies = percent(outcome.get("best_validation_accuracy")), percent(outcome.get("test_accuracy"))
        status = "" if outcome["status"] == "completed" else outcome["status"].replace("_", " ")
        rows.append((*(flag_text(value) for value in run.settings.values()), *accuracies, status))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(word.rjust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows)
