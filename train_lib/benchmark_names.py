"""What `--mode=benchmark` measures, by name. Imports nothing heavy: a command line is judged at once."""

from input_pipeline.errors import SettingError

# {row: what it is}, in the order of the table. `benchmark.MAKERS` has a maker for each.
ROWS = {
    "input": "training batches drawn on the host, no training",
    "step": "the compiled train step alone, on one batch that lies on the device",
    "one_device": "the same step on one device with the whole batch, where there are several",
    "loop": "the whole loop: input, steps, records, display, checkpoints",
    "model_fit": "Keras model.fit on the same batches and settings",
    "model_fit_default": "model.fit as tutorials write it, in a process with TensorFlow's defaults",
}
# (row, row that it is divided by).
RATIOS = (("step", "one_device"), ("loop", "step"), ("loop", "model_fit"), ("loop", "model_fit_default"))


class RowFailed(Exception):
    """A row that cannot be measured here; the message says why. The others are measured without it."""


def parse_rows(text):
    """The rows that --benchmark_rows names, a tuple in the table's order; all where it is empty.

    Raises:
      SettingError: no such row.
    """
    names = [name.strip() for name in text.split(",")] if text.strip() else list(ROWS)
    for name in names:
        if name not in ROWS:
            raise SettingError("benchmark_rows", text, f"no row is called {name!r}; give a comma list of {', '.join(ROWS)}")
    return tuple(name for name in ROWS if name in names)
