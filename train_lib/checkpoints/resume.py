"""Every decision about going on from a checkpoint, in the order in which a run takes them.

    refuse_other_experiment   a flag would change the experiment: exit code 2
    is_finished               nothing is left to do
    report_changes            a line for each flag that has a new value from here on
    refuse_other_data         the data behind the same flags have changed: exit code 2
    restore                   the tensors and counters, and which counters start again
    repair_pointers           `best` and `latest`, in case the process died between saving and pointing

Which flags are refused, reported or ignored is declared with each setting: `setting(..., on_resume=...)`.
"""

import numpy as np

from input_pipeline.common.errors import SettingError
from train_lib import config as config_lib
from train_lib.cadence import Patience, ValidationTracker
from train_lib.checkpoints.description import check_description
from train_lib.state import assign

# The settings that decide a prediction besides the weights. They come from the checkpoint, so no flag may contradict them.
FIXED_FOR_USE = ("model", "model_options", "image_size", "pixels", "augment")


def settings_with(on_resume):
    """The names of the settings that are declared with this `on_resume`, in the order of the help text."""
    return tuple(field.name for _, field in config_lib.leaves() if field.metadata["on_resume"] == on_resume)


def refuse_other_experiment(config, checkpoint, fixed=None):
    """Refuses flags that would change the mathematics or the order of the data of a run that has a checkpoint (or None).

    `fixed` names the settings that may not differ; None: those with on_resume="refuse". Raises SettingError, which names both
    values, if one does, and UnusableError if the checkpoint does not describe a run.
    """
    if checkpoint is None:
        return
    check_description(checkpoint)
    stored, asked = checkpoint.description["config"], config_lib.to_values(config)
    for name in settings_with("refuse") if fixed is None else fixed:
        if stored.get(name) != asked[name]:
            before = "not given" if stored.get(name) is None else stored[name]
            flagfile = checkpoint.folder.parent.parent / "run.flags"
            remedy = f"the checkpoint {checkpoint.folder} was made with {before}; give that (--flagfile={flagfile} gives all), "
            remedy += "or another --workdir"
            raise SettingError(name, asked[name], remedy)


def is_finished(config, checkpoint, result):
    """Whether a run has ended and is not asked to go further.

    `checkpoint` is the newest valid one, `result` the content of result.json; each is None if there is none.
    """
    if checkpoint is None or result is None or result.get("status") not in ("completed", "early_stopped"):
        return False
    if result.get("steps", checkpoint.step) != checkpoint.step:  # the last checkpoint is damaged, so redo the steps since
        return False
    stored = config_lib.to_values(config_lib.ExperimentConfig()) | checkpoint.description["config"]
    asked = config_lib.to_values(config)

    def is_higher(name):  # 0 means no limit
        return (asked[name] or float("inf")) > (stored[name] or float("inf"))

    more_patience = result["status"] == "early_stopped" and is_higher("early_stopping_patience")
    return not (asked["epochs"] > stored["epochs"] or is_higher("max_steps") or more_patience)


def report_changes(config, checkpoint, log):
    """Logs a line for each setting that has a new value from here on."""
    stored, asked = checkpoint.description["config"], config_lib.to_values(config)
    for name in settings_with("tell"):
        if stored.get(name) != asked[name]:
            log(f"--{name}={asked[name]} from here on; it was {stored.get(name)} when {checkpoint.folder.name} was saved")


def kind_of(split):
    """How a split is read, whatever --input says: "memory" (also if a device holds it) or "stream"."""
    return "memory" if hasattr(split, "images") else "stream"


def kind_before(checkpoint):
    """How the run of a Checkpoint reads its images, as `kind_of`; None if it does not say, or without a checkpoint."""
    return checkpoint.description.get("data", {}).get("input") if checkpoint else None


def describe_data(source, train_split, validation_split):
    """{flag: what it stands for}. The data can change while their name stays, so a checkpoint keeps this beside the flags."""
    splits = {"train_split": train_split, "validation_split": validation_split}
    return {
        "dataset": f"the classes {', '.join(source.class_names)}",
        **{flag: f"{split.num_examples} examples" for flag, split in splits.items() if split},
        "image_size": f"images of {' x '.join(map(str, train_split.image_shape[:2]))}",
        "input": kind_of(train_split),
    }


def refuse_other_data(config, checkpoint, data):
    """Raises SettingError, which names both values, if the data differ from the checkpoint's although the flags are the same.

    `data` is what `describe_data` returns, as the data are now. Without a checkpoint, nothing is refused.
    """
    stored, asked = checkpoint.description.get("data", data) if checkpoint else data, config_lib.to_values(config)
    for flag, now in data.items():
        if (before := stored.get(flag)) != now:
            remedy = f"is now {now[:200]}; the checkpoint {checkpoint.folder} was made with {str(before)[:200]}; "
            remedy += f"give --input={before}" if flag == "input" else "put that back, or give another --workdir"
            raise SettingError(flag, asked[flag], remedy)


def restore(state, checkpoint, plan, config, log):
    """Gives a new TrainState the tensors and counters of a checkpoint.

    Some of them start again:
    - averages begin with the weights, if the run had none so far;
    - momentum begins at rest, if the run had none so far;
    - a run that diverged goes on after the batch that ended it, with its count of skipped updates at 0;
    - with another --early_stopping_monitor, the best value, patience and plateau begin anew: a loss cannot beat an accuracy;
    - the counters go back to what an uncut run has at this step, if the run recorded or evaluated here only because it ended;
    - patience begins anew if early stopping had ended the run and it is asked to train longer; `log` gets a line about it.
    """
    tensors, stored = checkpoint.tensors(), checkpoint.description["config"]
    for name in state.averaged_weights():
        if (weight := name.replace("ema/", "model/", 1)) in tensors:
            tensors.setdefault(name, tensors[weight])
    if stored.get("momentum") == 0:
        slots = {name: slot for name, slot in state.slots().items() if name.endswith("momentum")}
        tensors = {name: np.zeros(slot.shape, slot.dtype) for name, slot in slots.items()} | tensors
    assign({**state.weights(), **state.slots(), **state.averaged_weights()}, tensors, checkpoint.folder)
    state.set_progress(checkpoint.description["progress"])
    if state.step < plan.last_step:
        state.set_progress(state.progress() | state.uncut)
        state.evaluation_owed = state.evaluation_owed and plan.evaluation_due(state.step)
    patience, waited = stored.get("early_stopping_patience", 0), state.validation.stopping.waited
    if state.skipped_in_a_row > config.optimization.max_nonfinite_steps:
        state.skipped_in_a_row = 0
    if stored.get("early_stopping_monitor") != config.cadence.early_stopping_monitor:
        state.validation = ValidationTracker(plateau_drops=state.validation.plateau_drops)
    if 0 < patience <= waited and plan.last_step > checkpoint.description["last_step"]:
        log(f"early stopping had ended the run after {waited} evaluations without improvement; its patience starts again")
        state.validation.stopping.waited = 0


def repair_pointers(state, store, plan, config, workers, log):
    """Repairs `latest` and `best` if the process died after saving a checkpoint but before updating them.

    If the best checkpoint is gone or damaged, the next evaluation counts as the best, because `best` can only name a checkpoint
    that exists. If training is already finished, the loop would not run: then one evaluation is forced, so that `best` exists.
    """
    tracker = state.validation
    has_best = workers.from_chief(lambda: store.repair_pointers(state.step, tracker.best_step))
    if not has_best and tracker.best_step is not None:
        log(f"the best checkpoint, of step {tracker.best_step}, is gone or damaged; the next evaluation counts as the best")
        tracker.best, tracker.best_step, tracker.step = Patience(), None, None
    if state.step >= plan.last_step or tracker.out_of_patience(config):
        state.evaluation_owed = True
