"""Whether a global batch can be shared out over replicas and --accumulate_steps."""

from input_pipeline.common.errors import SettingError

TRAINING = ("train", "benchmark")  # modes; others train nothing
WITHOUT_SHARES = ("predict", "export", "report")  # modes that pad a batch or need none


def check_shares(config, num_replicas):
    """Raises SettingError where an ExperimentConfig's batch does not divide, or leaves mixup an example without a partner."""
    if config.run.mode in WITHOUT_SHARES:
        return
    accumulate_steps = config.optimization.accumulate_steps if config.run.mode in TRAINING else 1
    check_divisible(config.optimization.global_batch_size, num_replicas, accumulate_steps)
    rows = config.optimization.global_batch_size // (num_replicas * accumulate_steps)
    if config.run.mode in TRAINING and "mixup" in config.data.augmentations and rows % 2:
        remedy = f"mixup pairs the {rows} images that a replica works on at a time; give a --global_batch_size that makes it even"
        raise SettingError("augment", config.data.augment, remedy)


def check_divisible(size, num_replicas, accumulate_steps=1):
    """Raises SettingError, with the nearest that do, where a batch of `size` does not divide by replicas and their parts."""
    parts = num_replicas * accumulate_steps
    if size % parts == 0:
        return
    lower = size // parts * parts
    nearest = f"{lower} or {lower + parts}" if lower else f"{parts}"
    accumulated = f" times {accumulate_steps} accumulate_steps" if accumulate_steps > 1 else ""
    remedy = f"must divide by the {num_replicas} replicas{accumulated}; the nearest that do: {nearest}"
    raise SettingError("global_batch_size", size, remedy)
