"""What TensorBoard's HParams tab shows of a run: the settings that vary, and the accuracies at the end. No TensorFlow."""

import contextlib
import io
import time

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from input_pipeline.common.small_files import replace_file

# Below the run's folder. A run rewrites its own event files beside it, and leaves this one alone.
EVENTS = "tensorboard/hparams/events.out.tfevents.sweep"
METRICS = ("best_validation_accuracy", "test_accuracy")


def write_hparams(run_path, settings, result):
    """Writes the event file of a run that has ended, with one rename. `result` is the content of its result.json."""
    settings = {name: "not given" if value is None else value for name, value in settings.items()}
    accuracies = [Summary.Value(tag=tag, simple_value=result[tag]) for tag in METRICS if result.get(tag) is not None]
    file, now = io.BytesIO(), time.time()
    events = RecordWriter(file)
    events.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
    for summary in (hparams_pb(settings, trial_id=run_path.name), Summary(value=accuracies)):
        events.write(Event(wall_time=now, step=result.get("steps", 0), summary=summary).SerializeToString())
    with contextlib.suppress(OSError):  # a full disk; the next start writes it
        (run_path / EVENTS).parent.mkdir(parents=True, exist_ok=True)
        replace_file(run_path / EVENTS, file.getvalue())
