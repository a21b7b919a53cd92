"""What TensorBoard's HParams tab shows of a run: the settings that vary, and the accuracies at the end. No TensorFlow."""

import io
import time

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE, STATUS_SUCCESS
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from input_pipeline.common.small_files import replace_file

# Below the run's folder. A run rewrites its own event files beside it, and leaves this one alone.
EVENTS = "tensorboard/hparams/events.out.tfevents.sweep"
METRICS = ("best_validation_accuracy", "test_accuracy")


def write_hparams(run_path, name, settings, result):
    """Writes the event file of a run that has ended, with one rename. `result` is the content of its result.json."""
    settings = {key: "not given" if value is None else value for key, value in settings.items()}
    values = [Summary.Value(tag=tag, simple_value=result[tag]) for tag in METRICS if result.get(tag) is not None]
    ended = STATUS_FAILURE if result["status"] == "diverged" else STATUS_SUCCESS
    file, now = io.BytesIO(), time.time()
    about = metadata.create_summary_metadata(HParamsPluginData(session_end_info=SessionEndInfo(status=ended, end_time_secs=now)))
    values += [Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=about, tensor=metadata.NULL_TENSOR)]
    events = RecordWriter(file)
    events.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
    for content in (hparams_pb(settings, trial_id=name), Summary(value=values)):
        events.write(Event(wall_time=now, step=result.get("steps", 0), summary=content).SerializeToString())
    path = run_path / EVENTS
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, file.getvalue())
