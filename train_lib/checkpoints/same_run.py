"""Flags against a checkpoint: what a run cannot change, what it takes anew and says so, whether anything is left to do."""

from input_pipeline.common.errors import SettingError
from train_lib import config as config_lib
from train_lib.checkpoints.description import check_description

# What fixes the mathematics and the order of the data: a run cannot go on with another value.
FIXED = (
    "dataset", "train_split", "validation_split", "test_split", "image_size", "pixels", "augment", "model", "model_options",
    "dropout_rate", "precision", "optimizer", "seed", "global_batch_size",
)
# What decides a prediction beside the weights; taken from the checkpoint, so a flag must not say otherwise.
FIXED_FOR_USE = ("model", "model_options", "image_size", "pixels", "augment")
# Not worth a line when they differ. Whether a run reads memory or a stream is compared as such, not by --input=auto.
SILENT = {*config_lib.OF_THIS_PROCESS, "preset", "data_dir", "cache_dir", "input", "decode_threads",
          "max_bad_examples"} - {"devices", "virtual_devices"}


def refuse_other_experiment(config, checkpoint, fixed=FIXED):
    """Refuses what would change the mathematics or the data order of a run that has a checkpoint.

    Raises:
      SettingError: a setting in `fixed` differs; the error names both values.
      UnusableError: the checkpoint does not describe a run.
    """
    if checkpoint is None:
        return
    check_description(checkpoint)
    stored, asked = checkpoint.description["config"], config_lib.to_values(config)
    for name in fixed:
        if stored.get(name) != asked[name]:
            before = "not given" if stored.get(name) is None else stored[name]
            flagfile = checkpoint.folder.parent.parent / "run.flags"
            remedy = f"the checkpoint {checkpoint.folder} was made with {before}; give that (--flagfile={flagfile} gives all), "
            remedy += "or another --workdir"
            raise SettingError(name, asked[name], remedy)


def say_what_changed(config, checkpoint, log):
    """One line for each setting that takes a new value from here on."""
    stored = checkpoint.description["config"]
    for name, value in config_lib.to_values(config).items():
        if name not in SILENT.union(FIXED) and stored.get(name) != value:
            log(f"--{name}={value} from here on; it was {stored.get(name)} when {checkpoint.folder.name} was saved")


def kind_of(split):
    """How a split is read, whatever --input says: "memory" (held by a device, too) or "stream"."""
    return "memory" if hasattr(split, "images") else "stream"


def kind_before(checkpoint):
    """How a Checkpoint's run reads its images, as `kind_of`; None where it does not say so, or there is no checkpoint."""
    return checkpoint.description.get("data", {}).get("input") if checkpoint else None


def describe_data(source, train_split, validation_split):
    """{flag: what it stands for}, of what a flag names and does not fix: data can change under their name."""
    splits = {"train_split": train_split, "validation_split": validation_split}
    return {
        "dataset": f"the classes {', '.join(source.class_names)}",
        **{flag: f"{split.num_examples} examples" for flag, split in splits.items() if split},
        "image_size": f"images of {' x '.join(map(str, train_split.image_shape[:2]))}",
        "input": kind_of(train_split),
    }


def refuse_other_data(config, checkpoint, data):
    """Refuses data that are not those of the checkpoint though the flags are, by the results of `describe_data`.

    Raises:
      SettingError: the error names both values.
    """
    stored, asked = checkpoint.description.get("data", data) if checkpoint else data, config_lib.to_values(config)
    for flag, now in data.items():
        if (before := stored.get(flag)) != now:
            remedy = f"is now {now[:200]}; the checkpoint {checkpoint.folder} was made with {str(before)[:200]}; "
            remedy += f"give --input={before}" if flag == "input" else "put that back, or give another --workdir"
            raise SettingError(flag, asked[flag], remedy)


def is_finished(config, checkpoint, result):
    """Whether a run has ended and is asked for no more than it has done."""
    if checkpoint is None or result is None or result.get("status") not in ("completed", "early_stopped"):
        return False
    if result.get("steps", checkpoint.step) != checkpoint.step:  # the last checkpoint is damaged, so its part is done again
        return False
    stored = config_lib.to_values(config_lib.ExperimentConfig()) | checkpoint.description["config"]
    asked = config_lib.to_values(config)
    without_limit = {name: stored[name] or float("inf") for name in ("max_steps", "early_stopping_patience")}
    return (
        asked["epochs"] <= stored["epochs"]
        and (asked["max_steps"] or float("inf")) <= without_limit["max_steps"]
        and (
            result["status"] == "completed"
            or (asked["early_stopping_patience"] or float("inf")) <= without_limit["early_stopping_patience"]
        )
    )
