"""What `--mode=benchmark` measures, by name. Imports nothing heavy: a command line is judged at once."""

from input_pipeline.common.errors import SettingError

# {row: what it is}, in the order of the table. `benchmark.MAKERS` has a maker for each.
ROWS = {
    "input": "training batches drawn on the host, no training",
    "read": "of a stream: its records, neither parsed nor decoded",
    "read_decode": "of a stream: records, parsed and decoded",
    "decode_crop": "of a stream of JPEGs: records, parsed; decoded no more than the windows that training cuts",
    "read_decode_augment": "of a stream: all of it, which is input once more",
    "numpy_gather": "NumPy's random gather of whole images, one thread: the bound of what memory gives",
    "canonical": "per-example tf.data: shuffle, pad, crop, flip, cast, batch, prefetch; all AUTOTUNE",
    "tutorial": "the tutorial's tf.data: slices, cast, shuffle, batch; no augmentation",
    "step": "the compiled train step alone, on one batch that lies on the device",
    "one_device": "the same step on one device with the whole batch, where there are several",
    "loop": "the whole loop: input, steps, records, display, checkpoints",
    "loop_constant": "the same loop on one batch, again and again: what it does where no data is waited for",
    "model_fit": "Keras model.fit on the same batches and settings",
    "model_fit_default": "model.fit as tutorials write it, in a process with TensorFlow's defaults",
}
OF_A_STREAM = ("read", "read_decode", "decode_crop", "read_decode_augment")
# Rows that draw batches and train nothing. Their rounds last a moment.
INPUTS = ("input", *OF_A_STREAM, "numpy_gather", "canonical", "tutorial")
# (row, row that it is divided by).
RATIOS = (
    ("input", "canonical"), ("input", "tutorial"), ("input", "numpy_gather"), ("input", "decode_crop"),
    ("read_decode", "read"), ("read_decode_augment", "read_decode"), ("input", "step"), ("step", "one_device"),
    ("loop", "step"), ("loop", "loop_constant"), ("loop", "model_fit"), ("loop", "model_fit_default"),
)


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
