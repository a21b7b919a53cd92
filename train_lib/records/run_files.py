"""What a run leaves in its workdir, read by another process: `report` and `compare`. Does not import TensorFlow."""

from input_pipeline.common.errors import UnusableError
from input_pipeline.common.small_files import parse_json

# {status in result.json: in words}
STATUS = {
    "completed": "Completed", "early_stopped": "Stopped early, without further gain",
    "diverged": "Diverged: the loss or the gradient is no longer finite",
    "preempted": "Stopped by a signal; start the same command with its --workdir to go on",
}


def read_object(path, names=()):
    """The object in a JSON file; {} if the file does not exist. Raises UnusableError if it is something else or lacks `names`."""
    try:
        value = parse_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        value = None
    if not isinstance(value, dict) or not value.keys() >= set(names):
        raise UnusableError(f"{path}: is not what a run writes; remove it, or let the program that wrote it write it again")
    return value
