"""Opens a run: data, network, optimizer, records, and the checkpoint that it goes on from."""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from input_pipeline.errors import SettingError
from input_pipeline.sources import Source, open_source
from input_pipeline.splits import open_split
from train_lib import checkpointing
from train_lib import config as config_lib
from train_lib.cadence import Plan, make_plan
from train_lib.state import PixelScaling, TrainState, assign, create_state, pixel_scaling
from train_lib.strategy import create_strategy
from train_lib.workdir import BAD_EXAMPLES, Workdir
from train_lib.workers import OneWorker

# What fixes the mathematics and the order of the data: a run cannot go on with another value.
FIXED = (
    "dataset", "train_split", "validation_split", "test_split", "image_size", "pixels", "augment", "model", "model_options",
    "dropout_rate", "precision", "optimizer", "seed", "global_batch_size",
)
# Not worth a line when they differ.
FREE = (*config_lib.OF_THIS_PROCESS, "preset", "data_dir", "cache_dir", "input", "decode_threads", "max_bad_examples")


@dataclasses.dataclass
class Run:
    """An open run."""

    config: config_lib.ExperimentConfig
    workdir: Workdir
    strategy: tf.distribute.Strategy
    source: Source
    train_split: object
    validation_split: object
    state: TrainState
    plan: Plan
    store: checkpointing.CheckpointStore
    workers: OneWorker = dataclasses.field(default_factory=OneWorker)

    def open_test_split(self):
        """The test split."""
        split = open_split(self.config.data, self.source, self.config.data.test_split, "test_split", log=lambda line: None)
        self.list_bad_examples()
        return split

    def list_bad_examples(self):
        """Adds to bad_examples.txt what was skipped since."""
        self.workdir.write_bad_examples(self.source.bad.lines())

    def save(self, is_best):
        """Saves the state as a checkpoint. Returns why that failed, None where it did not; the same on every worker."""
        tensors = tensors_of(self.state)  # by all: to read a moving statistic is a reduction over the replicas

        def write():
            self.list_bad_examples()
            try:
                self.store.save(self.state.step, tensors, self.describe(), is_best)
            except (OSError, tf.errors.OpError) as error:
                return str(error).strip().splitlines()[0]
            return None

        return self.workers.from_chief(write)

    def describe(self):
        """What a checkpoint says of itself besides its tensors; no wall-clock value."""
        return {
            "config": config_lib.to_values(self.config) | {"workdir": None},
            "class_names": list(self.source.class_names),
            "image_shape": list(self.train_split.image_shape),
            "last_step": self.plan.last_step,
            "progress": self.state.progress(),
        }


def tensors_of(state):
    """{name: NumPy array} of everything in a TrainState that is a tensor."""
    variables = {**state.weights(), **state.slots(), **state.averaged_weights()}
    return {name: keras.ops.convert_to_numpy(variable) for name, variable in variables.items()} | {
        **state.pixels.tensors(),
        "step": np.int64(state.step),
    }


def open_run(config, workdir, checkpoint, store, log=print, workers=None):
    """Builds everything that training needs, from `checkpoint` where there is one.

    Raises:
      ExpectedError: settings, data, devices, network or checkpoint do not fit together.
    """
    if checkpoint is not None:
        say_what_changed(config, checkpoint, log)
    workers = workers or OneWorker()
    strategy = create_strategy(config, workers)
    source = workers.chief_first(lambda: open_source(config.data))  # which prepares it where that is not done
    train_split = open_split(config.data, source, config.data.train_split, "train_split", log)
    validation_split = None
    if config.data.validation_split:
        validation_split = open_split(config.data, source, config.data.validation_split, "validation_split", log)
    if config.data.test_split:
        source.num_examples(config.data.test_split, "test_split")  # a wrong name shall not surface after the last epoch
    workdir.write_bad_examples(source.bad.lines())
    if source.bad.found:
        log(f"{len(source.bad.found)} examples that cannot be used are skipped, listed in {workdir.path / BAD_EXAMPLES}")
    plan = make_plan(config, train_split.num_examples)
    if checkpoint is None:
        pixels = pixel_scaling(config.data.pixels, train_split, config.data.augmentations)
    else:
        pixels = PixelScaling.from_tensors(checkpoint.tensors("pixels/"))
    state = create_state(config, strategy, len(source.class_names), train_split.image_shape, pixels)
    if checkpoint is not None:
        restore(state, checkpoint, plan)
    elif config.network.init_from:
        initialize(state, checkpointing.find_initial(config.network.init_from), log)
    return Run(config, workdir, strategy, source, train_split, validation_split, state, plan, store, workers)


def refuse_other_experiment(config, checkpoint):
    """Refuses what would change the mathematics or the data order of a run that has a checkpoint.

    Raises:
      SettingError: a setting in FIXED differs; the error names both values.
    """
    if checkpoint is None:
        return
    stored, asked = checkpoint.description["config"], config_lib.to_values(config)
    for name in FIXED:
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
        if name not in FIXED + FREE and stored.get(name) != value:
            log(f"--{name}={value} from here on; it was {stored.get(name)} when {checkpoint.folder.name} was saved")


def restore(state, checkpoint, plan):
    """Gives a new TrainState the tensors and the progress of a checkpoint."""
    tensors = checkpoint.tensors()
    for name in state.averaged_weights():  # averaging begins here where the run so far had none
        tensors.setdefault(name, tensors[name.replace("ema/", "model/", 1)])
    assign({**state.weights(), **state.slots(), **state.averaged_weights()}, tensors, checkpoint.folder)
    state.set_progress(checkpoint.description["progress"])
    state.skipped_in_a_row = 0
    if plan.last_step > checkpoint.description["last_step"]:
        state.judgement.stopping.waited = 0  # a longer run was asked for, so an early stop is no reason to end at once


def initialize(state, checkpoint, log):
    """Starts from another run's weights; the last layer stays as initialised where its number of classes differs.

    Raises:
      UnusableError: the weights are those of another network.
    """
    tensors = checkpoint.judged_weights()
    variables = state.weights()
    last_layer = [name for name in variables if name.startswith("model/logits/")] or list(variables)[-2:]
    differing = [name for name in last_layer if name in tensors and tensors[name].shape != tuple(variables[name].shape)]
    if differing:
        log(f"{checkpoint.folder}: {', '.join(last_layer)} left as initialised, the number of classes differs")
    assign(
        {name: variable for name, variable in variables.items() if not (differing and name in last_layer)},
        tensors, checkpoint.folder,
    )
    for weight, average in zip(state.model.trainable_variables, state.averages, strict=False):
        average.assign(weight.numpy())
    log(f"weights from {checkpoint.folder}")


def restore_best(run):
    """Puts the best checkpoint's weights into the network; returns its step.

    Raises:
      UnusableError: it is damaged.
    """
    best = run.store.find("best")
    assign(run.state.weights(), best.judged_weights(), best.folder)
    return best.step


def is_finished(config, checkpoint, result):
    """Whether a run has ended and is asked for no more than it has done."""
    if checkpoint is None or result is None or result.get("status") not in ("completed", "early_stopped"):
        return False
    stored, asked = checkpoint.description["config"], config_lib.to_values(config)
    without_limit = {name: stored[name] or float("inf") for name in ("max_steps", "early_stopping_patience")}
    return (
        asked["epochs"] <= stored["epochs"]
        and (asked["max_steps"] or float("inf")) <= without_limit["max_steps"]
        and (
            result["status"] == "completed"
            or (asked["early_stopping_patience"] or float("inf")) <= without_limit["early_stopping_patience"]
        )
    )
