"""Checks that progress.json describes a run: a checkpoint can agree with its manifest and still be from another program."""

from input_pipeline.common.errors import SettingError, UnusableError
from input_pipeline.common.small_files import is_of
from train_lib import config as config_lib
from train_lib.cadence import PLATEAU_MAX_DROPS
from train_lib.state import TrainState

LARGEST_SIDE = 2**16  # pixels


def check_description(checkpoint):
    """Raises UnusableError if the description of a Checkpoint lacks something, or has it in another form than a run writes."""
    reason = _why_not(checkpoint.description, checkpoint.step)
    if reason:
        remedy = "it is not the checkpoint of a run, or of another version; give another --workdir"
        raise UnusableError(f"{checkpoint.folder / 'progress.json'}: {reason}; {remedy}")


def _why_not(about, step):
    if not isinstance(about, dict):
        return "is no JSON object"
    names, shape = about.get("class_names"), about.get("image_shape")
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        return "class_names are not texts"
    sides = isinstance(shape, list) and len(shape) == 3 and all(is_of(size, int) and 0 < size <= LARGEST_SIDE for size in shape)
    if not (sides and shape[2] == 3):
        return "image_shape is no [height, width, 3]"
    if not isinstance(about.get("data"), dict):
        return "holds no data"
    if not isinstance(about.get("last_step"), int):  # of any size, because --epochs may be huge
        return "last_step is no number"
    config, known = about.get("config"), {field.name for _, field in config_lib.leaves()}
    if not isinstance(config, dict) or not known & config.keys():
        return "holds no config"
    try:
        # An older version may have had more settings.
        config_lib.from_values({name: value for name, value in config.items() if name in known})
    except SettingError as error:
        return f"config has {error}"
    return "" if _is_progress(about.get("progress"), step) else "progress is not that of a run at this step"


def _is_progress(progress, step):
    fresh, read = TrainState(None, None, None), TrainState(None, None, None)
    try:
        read.set_progress(progress)
        counters = {name: fresh.progress()[name] for name in ("judgement", "totals")}
        form = fresh.progress() | {"uncut": {name: counters[name] for name in read.uncut}}
        if not (_has_form(read.progress(), form) and read.step == step and 0 <= read.skipped_in_a_row < 2**31):
            return False
        trackers = [values["judgement"] for values in (progress, progress | read.uncut)]
        has_best = all(one["best_step"] is None or one["best_step"] >= 0 for one in trackers)
        return has_best and all(0 <= one["plateau_drops"] <= PLATEAU_MAX_DROPS for one in trackers)
    except (KeyError, TypeError, AttributeError, ValueError):
        return False


def _has_form(value, form):
    """Whether a JSON value has the keys of `form`, and numbers in the same places. None in `form` allows a number or None.

    Further keys must hold numbers: they are sums of metrics that this version may not have.
    """
    if isinstance(form, dict):
        whole = isinstance(value, dict) and form.keys() <= value.keys()
        return whole and all(_has_form(value[key], form.get(key, 0.0)) for key in value)
    if isinstance(form, bool):
        return isinstance(value, bool)
    if form is None:
        return value is None or is_of(value, (int, float))
    return is_of(value, (int, float) if isinstance(form, float) else int)
