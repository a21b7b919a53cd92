"""The whole configuration of an experiment. It is frozen, validated when it is made, and equal to its JSON form.

A new setting is one line here: its flag, help text, validation and place in config.json follow from it.
"""

import dataclasses
import re

from alexnet import names
from input_pipeline.common.errors import SettingError
from input_pipeline.common.settings import Settings, setting
from input_pipeline.config import OF_AUGMENTATIONS, DataConfig

MODES = ("train", "evaluate", "predict", "export", "benchmark", "report", "sweep", "compare")
NEED_A_RUN = ("evaluate", "predict", "export", "report")
# Settings of the process, not of the experiment. A later process never takes them from the config.json of a run.
OF_THIS_PROCESS = ("mode", "workdir", "debug", "init_from", "devices", "virtual_devices", "split", "checkpoint", "profile_steps",
                   "benchmark_rows", "inputs", "export_dir", "sweep", "parallel", "dry_run")
TRAINING = ("train", "benchmark")  # the modes that train
WITHOUT_SHARES = ("predict", "export", "report", "sweep", "compare")  # modes that pad a batch or have none
TEST_CROPS = (1, 2, 6, 10)
MONITORS = ("validation_accuracy", "validation_loss")

# {row of --mode=benchmark: what it measures}, in the order of the table.
BENCHMARK_ROWS = {
    "input": "training batches drawn on the host, no training",
    "read": "streams: the records, neither parsed nor decoded",
    "read_decode": "streams: the records, parsed and decoded",
    "decode_crop": "streams of JPEGs: the records, parsed, and only the windows decoded that training cuts",
    "read_decode_augment": "streams: all of it; the same as input",
    "numpy_gather": "NumPy's random gather of whole images in one thread: the speed limit of the memory",
    "canonical": "per-example tf.data: shuffle, pad, crop, flip, cast, batch, prefetch; all AUTOTUNE",
    "tutorial": "the tutorial's tf.data: slices, cast, shuffle, batch; no augmentation",
    "step": "the compiled train step alone, on one batch that is on the device",
    "one_device": "the same step with the whole batch on one device, if there are several",
    "loop": "the whole loop: input, steps, records, display, checkpoints",
    "loop_constant": "the same loop on one batch again and again: its speed without any waiting for data",
    "model_fit": "Keras model.fit on the same batches and settings",
    "model_fit_default": "model.fit as tutorials write it, in a process with TensorFlow's defaults",
}


def is_step(text):
    """Whether a text is the number of a step."""
    return text.isascii() and text.isdecimal() and len(text) < 19


@dataclasses.dataclass(frozen=True)
class GeneralConfig(Settings):
    """General: what to do, and where the run is kept."""

    mode: str = setting("train", "what to do", choices=MODES, on_resume="ignore")
    preset: str = setting(
        "quickstart", "named defaults, from a file in train_lib/cli/presets; a flag on the command line wins", on_resume="ignore")
    workdir: str | None = setting(
        None, "the run's folder; if it holds a checkpoint, the run resumes; not given: a new one under runs/", on_resume="ignore")
    seed: int = setting(
        0, "seed of the initial weights, the order of the examples, augmentation and dropout", low=0, high=2**31 - 1,
        on_resume="refuse")
    deterministic: bool = setting(False, "bit-reproducible on one machine; costs speed on GPUs")
    debug: bool = setting(
        False, "one device, eager, no threads around your code, so that a breakpoint() in the step works", on_resume="ignore")


@dataclasses.dataclass(frozen=True)
class ModelConfig(Settings):
    """Network."""

    model: str = setting(
        "alexnet_mini", f"{', '.join(names.OWN)}, or a network of keras.applications, such as VGG16", on_resume="refuse")
    model_options: str = setting(
        "", "comma list of options of the network, such as lrn=false,dense_units=256", on_resume="refuse")
    dropout_rate: float | None = setting(
        None, "dropout of the networks in alexnet/; not given: the network's own rate", low=0.0, below=1.0, on_resume="refuse")
    init_from: str | None = setting(
        None, "weights to start from: a workdir (its best checkpoint) or a checkpoint folder", on_resume="ignore")
    precision: str = setting(
        "float32", "type of the computation; with bfloat16 and float16 the weights, response normalization, softmax and loss "
        "stay float32; float16 adapts a loss scale; float64 is for proofs on a CPU",
        choices=("float32", "bfloat16", "float16", "float64"), on_resume="refuse")

    def __post_init__(self):
        super().__post_init__()
        try:
            names.check_name(self.model)
        except ValueError as error:
            raise SettingError("model", self.model, str(error)) from None
        try:
            names.parse_options(self.model, self.model_options)
        except ValueError as error:
            raise SettingError("model_options", self.model_options, str(error)) from None
        if self.dropout_rate is not None and self.model in names.APPLICATIONS:
            remedy = f"does not reach {self.model}, which keeps its own dropout; leave the flag out"
            raise SettingError("dropout_rate", self.dropout_rate, remedy)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Settings):
    """Optimization: the update of the weights."""

    optimizer: str = setting("sgd", "update rule", choices=("sgd", "adam", "adamw"), on_resume="refuse")
    learning_rate: float = setting(0.01, "highest learning rate of the schedule", above=0.0)
    bias_rate: float = setting(1.0, "factor on the learning rate of the biases of batch and layer normalization", above=0.0)
    momentum: float = setting(0.9, "momentum, of sgd only", low=0.0, below=1.0)
    nesterov: bool = setting(False, "Nesterov's form of the momentum, of sgd only")
    weight_decay: float = setting(
        0.0, "weight decay of kernels; biases and normalization are left alone; inside the momentum update for sgd, in the "
        "gradient for adam, decoupled for adamw", low=0.0)
    clip_global_norm: float = setting(0.0, "largest norm of the gradient of the whole batch, 0: off", low=0.0)
    label_smoothing: float = setting(
        0.0, "fraction of the target probability that is spread evenly over the classes", low=0.0, below=1.0)
    global_batch_size: int = setting(
        128, "images per step over all replicas together, never per replica", low=1, on_resume="refuse")
    accumulate_steps: int = setting(
        1, "number of parts in which each replica works through its share of the batch, to save memory; the update stays that "
        "of the whole batch", low=1)
    ema_decay: float = setting(
        0.0, "decay of an exponential moving average of the weights, such as 0.999; it is evaluated and saved too; 0: off",
        low=0.0, below=1.0)
    lookahead_steps: int = setting(
        0, "Lookahead: every so many steps, slow weights move towards the trained weights, which go on from there; the slow ones "
        "are evaluated and saved; 0: off", low=0)
    max_nonfinite_steps: int = setting(
        0, "how many updates in a row may be skipped because of a NaN or infinity before the run stops", low=0)

    def __post_init__(self):
        super().__post_init__()
        if self.lookahead_steps and self.ema_decay:
            remedy = "this and --ema_decay both choose the weights that are evaluated; give one of them"
            raise SettingError("lookahead_steps", self.lookahead_steps, remedy)


@dataclasses.dataclass(frozen=True)
class ScheduleConfig(Settings):
    """Schedule: how long to train, and how the learning rate changes over --epochs."""

    epochs: float = setting(10.0, "passes over the training split, fractions allowed", above=0.0)
    max_steps: int = setting(0, "end after this many steps if that comes first, 0: no limit; does not change the schedule", low=0)
    schedule: str = setting(
        "constant", "schedule of the learning rate; step: divided by 10 at 1/2 and 3/4 of --epochs; plateau: divided by 10 when "
        "the monitored value has not improved for 5 evaluations, three times at most; triangle: see --triangle",
        choices=("constant", "step", "cosine", "one_cycle", "plateau", "triangle"))
    triangle: str = setting(
        "0.2,0.23,0.07", "START,PEAK,END of --schedule=triangle: the learning rate rises linearly from START times its highest "
        "value, reaches that at PEAK of --epochs, and falls linearly to END times it; numbers from 0 to 1")

    def __post_init__(self):
        super().__post_init__()
        self.triangle_points()

    def triangle_points(self):
        """(start, peak, end) of --triangle, floats."""
        parts = [part.strip() for part in self.triangle.split(",")]
        if len(parts) != 3 or not all(re.fullmatch(r"1(\.0*)?|0?\.\d{1,12}|0", part, re.ASCII) for part in parts):
            raise SettingError("triangle", self.triangle, "give START,PEAK,END, three numbers from 0 to 1, such as 0.2,0.23,0.07")
        return tuple(map(float, parts))
    warmup_epochs: float = setting(
        0.0, "number of epochs at the start in which the learning rate also rises linearly", low=0.0)


@dataclasses.dataclass(frozen=True)
class CadenceConfig(Settings):
    """Evaluation, logs, checkpoints and early stopping: how often. The last step is always evaluated and saved."""

    eval_every_epochs: float = setting(1.0, "epochs between two evaluations of the validation split", above=0.0)
    log_every_steps: int = setting(50, "steps per train record, which holds the mean of their metrics", low=1)
    checkpoint_every_steps: int = setting(0, "steps between checkpoints, besides the end of each epoch; 0: only there", low=0)
    keep_checkpoints: int = setting(2, "how many of the newest checkpoints to keep, besides the best; 0: all", low=0)
    early_stopping_patience: int = setting(0, "evaluations without improvement before the run stops, 0: never", low=0)
    early_stopping_monitor: str = setting(
        "validation_accuracy", "the metric of early stopping, the plateau schedule and the best checkpoint", choices=MONITORS)
    early_stopping_min_delta: float = setting(0.0, "smallest improvement that counts for early stopping", low=0.0)


@dataclasses.dataclass(frozen=True)
class DeviceConfig(Settings):
    """Devices."""

    devices: int = setting(0, "how many accelerators to train on, 0: all", low=0)
    virtual_devices: int = setting(1, "logical devices to split the CPU into, to try N replicas without a GPU", low=1, high=64)
    steps_per_loop: int = setting(
        20, "steps in one call of the compiled loop; fewer if a log, evaluation or checkpoint is due", low=1, high=10**6)
    xla: str = setting(
        "auto", "whether to compile the forward and backward pass of each replica with XLA; auto: off, because on a CPU with "
        "oneDNN a step of alexnet_mini took 1.17 times as long with it; not measured on GPUs yet",
        choices=("auto", "on", "off"))
    profile_steps: str = setting(
        "", "START:STOP writes a TensorBoard trace of the steps from START up to STOP; empty: no trace", on_resume="ignore")

    def __post_init__(self):
        super().__post_init__()
        self.profile_range()

    def profile_range(self):
        """(first step, step after the last) of --profile_steps, None where it is empty."""
        if not self.profile_steps:
            return None
        start, colon, stop = self.profile_steps.partition(":")
        if not (colon and is_step(start) and is_step(stop) and int(start) < int(stop)):
            raise SettingError("profile_steps", self.profile_steps, "give START:STOP, two whole numbers, such as 100:110")
        return int(start), int(stop)


@dataclasses.dataclass(frozen=True)
class ModesConfig(Settings):
    """The other modes."""

    split: str = setting("", "the examples to evaluate on, TFDS slicing syntax; empty: --test_split", on_resume="ignore")
    checkpoint: str = setting("best", "best, latest or a step", on_resume="ignore")
    inputs: str = setting(
        "", "comma list of what to predict: image files, globs, or folders, which are searched recursively; or of what to "
        "compare: workdirs, sweeps, or globs of them", on_resume="ignore")
    export_dir: str | None = setting(
        None, "the folder that --mode=export writes; it must not exist; not given: export/ in the workdir", on_resume="ignore")
    test_crops: int = setting(
        1, "views per test image, whose predictions are averaged, at the end of training and in evaluate, predict and export; "
        "2: the image and its mirror image; 6: also both of them shifted by one pixel up left and down right; "
        "10: the four corners and the middle of a larger image, and their mirror images (AlexNet's test)")
    benchmark_rows: str = setting(
        "", f"comma list of what to measure: {', '.join(BENCHMARK_ROWS)}; empty: all", on_resume="ignore")
    sweep: str = setting(
        "", "settings and their values, such as learning_rate=0.02,0.04;seed=0:3 (a range excludes its end); --mode=sweep trains "
        "a run for every combination, in a folder of its own below --workdir", on_resume="ignore")
    parallel: int = setting(
        0, "how many runs of a sweep train at once, each on one accelerator or on --devices of them; 0: as many as fit, one on a "
        "CPU", low=0, on_resume="ignore")
    dry_run: bool = setting(False, "validate everything, print one command per run, start nothing", on_resume="ignore")

    def __post_init__(self):
        super().__post_init__()
        if self.checkpoint not in ("best", "latest") and not is_step(self.checkpoint):
            raise SettingError("checkpoint", self.checkpoint, "give best, latest or the number of a step")
        if self.test_crops not in TEST_CROPS:
            raise SettingError("test_crops", self.test_crops, f"give {', '.join(map(str, TEST_CROPS[:-1]))} or {TEST_CROPS[-1]}")
        parse_rows(self.benchmark_rows)


@dataclasses.dataclass(frozen=True)
class ExperimentConfig(Settings):
    """Everything that a run depends on: one section per field."""

    general: GeneralConfig = dataclasses.field(default_factory=GeneralConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    network: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    optimization: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    cadence: CadenceConfig = dataclasses.field(default_factory=CadenceConfig)
    device: DeviceConfig = dataclasses.field(default_factory=DeviceConfig)
    modes: ModesConfig = dataclasses.field(default_factory=ModesConfig)

    def __post_init__(self):
        super().__post_init__()
        needs_validation = [
            ("early_stopping_patience", self.cadence.early_stopping_patience, self.cadence.early_stopping_patience > 0),
            ("schedule", self.schedule.schedule, self.schedule.schedule == "plateau"),
        ]
        for name, value, needed in needs_validation:
            if needed and not self.data.validation_split:
                raise SettingError(name, value, "needs a --validation_split; give one, or leave this flag out")
        if self.general.mode in NEED_A_RUN and self.general.workdir is None:
            raise SettingError("workdir", None, f"--mode={self.general.mode} needs the folder of a run")
        if self.general.mode == "predict" and not self.modes.inputs:
            raise SettingError("inputs", "", "--mode=predict needs image files, folders or globs")
        if self.general.mode == "compare" and not self.modes.inputs:
            raise SettingError("inputs", "", "--mode=compare needs workdirs, sweeps or globs of them, such as 'runs/*'")
        for name in ("sweep", "dry_run"):
            if (value := getattr(self.modes, name)) and self.general.mode != "sweep":
                remedy = f"--mode={self.general.mode} has no such flag; give --mode=sweep, or leave it out"
                raise SettingError(name, value, remedy)
        if self.general.mode == "sweep" and not self.modes.sweep:
            raise SettingError("sweep", "", "--mode=sweep needs settings with values, such as learning_rate=0.02,0.04;seed=0:3")
        there = self.device.virtual_devices
        check_shares(self, min(self.device.devices or there, there))
        if self.general.debug and there > 1:
            raise SettingError("virtual_devices", there, "--debug runs on one device; give 1")
        if self.general.debug and self.general.mode == "benchmark":
            raise SettingError("debug", True, "--mode=benchmark measures the compiled step; leave it out")


def sections():
    """Yields (name, class) of each section of ExperimentConfig, in the order of the help text."""
    for field in dataclasses.fields(ExperimentConfig):
        yield field.name, field.default_factory


def leaves():
    """Yields (section name, dataclass field) for every setting."""
    for section, kind in sections():
        for field in dataclasses.fields(kind):
            yield section, field


def from_values(values):
    """Makes an ExperimentConfig from a flat dict {setting name: value}. A setting that is missing takes its default.

    Raises SettingError if a name is unknown or a value cannot work.
    """
    known = {field.name for _, field in leaves()}
    for name in values:
        if name not in known:
            raise SettingError(name, values[name], "is not a setting of this version; remove it")
    return ExperimentConfig(**{
        section: kind(**{f.name: values[f.name] for f in dataclasses.fields(kind) if f.name in values})
        for section, kind in sections()})


def to_values(config):
    """The flat dict {setting name: value} that `from_values` takes back."""
    return {field.name: getattr(getattr(config, section), field.name) for section, field in leaves()}


def parse_rows(text):
    """The rows that --benchmark_rows names, as a tuple in the order of the table; all of them if it is empty."""
    names = [name.strip() for name in text.split(",")] if text.strip() else list(BENCHMARK_ROWS)
    for name in names:
        if name not in BENCHMARK_ROWS:
            remedy = f"no row is called {name!r}; give a comma list of {', '.join(BENCHMARK_ROWS)}"
            raise SettingError("benchmark_rows", text, remedy)
    return tuple(name for name in BENCHMARK_ROWS if name in names)


def check_shares(config, num_replicas):
    """Raises SettingError if the batch of an ExperimentConfig does not divide by the replicas, or mixup lacks a partner."""
    if config.general.mode in WITHOUT_SHARES:
        return
    accumulate_steps = config.optimization.accumulate_steps if config.general.mode in TRAINING else 1
    check_divisible(config.optimization.global_batch_size, num_replicas, accumulate_steps)
    rows = config.optimization.global_batch_size // (num_replicas * accumulate_steps)
    mixing = [name for name in ("mixup", "cutmix") if name in config.data.augmentations]
    if config.general.mode in TRAINING and mixing and rows % 2:
        remedy = f"{mixing[0]} pairs the {rows} images of a replica; choose a --global_batch_size for which that is even"
        raise SettingError("augment", config.data.augment, remedy)


def check_divisible(size, num_replicas, accumulate_steps=1):
    """Raises SettingError, naming the nearest sizes that do, if a batch does not divide by the replicas and their parts."""
    parts = num_replicas * accumulate_steps
    if size % parts == 0:
        return
    lower = size // parts * parts
    nearest = f"{lower} or {lower + parts}" if lower else f"{parts}"
    accumulated = f" times {accumulate_steps} accumulate_steps" if accumulate_steps > 1 else ""
    remedy = f"must divide by the {num_replicas} replicas{accumulated}; the nearest that do: {nearest}"
    raise SettingError("global_batch_size", size, remedy)


def refuse_ignored_settings(config):
    """Raises SettingError if a setting does not have its default, and the chosen optimizer, schedule or --augment ignores it."""
    optimizer, schedule, augment = config.optimization.optimizer, config.schedule.schedule, config.data.augment
    ignored = {name: f"--optimizer={optimizer} has no such setting; leave it out, or give --optimizer=sgd"
               for name in ("momentum", "nesterov") if optimizer != "sgd"}
    if schedule != "triangle":
        ignored["triangle"] = f"--schedule={schedule} has no such setting; leave it out, or give --schedule=triangle"
    for augmentation, settings in OF_AUGMENTATIONS.items():
        if augmentation not in config.data.augmentations:
            remedy = f"belongs to {augmentation}, which is not in --augment={augment}; add it, or leave this flag out"
            ignored |= dict.fromkeys(settings, remedy)
    values, defaults = to_values(config), to_values(ExperimentConfig())
    for name, remedy in ignored.items():
        if values[name] != defaults[name]:
            raise SettingError(name, values[name], remedy)
