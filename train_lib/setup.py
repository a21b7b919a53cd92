"""Opens a run: data, network, optimizer, records, and the checkpoint that it goes on from."""

import dataclasses

import numpy as np
import tensorflow as tf

from input_pipeline.common.errors import SettingError, UnusableError
from input_pipeline.common.small_files import UnusableFile
from input_pipeline.sources import Source, open_source
from input_pipeline.splits import decide_input, open_split, read_like
from train_lib import config as config_lib
from train_lib.cadence import Patience, Plan, ValidationTracker, make_plan
from train_lib.checkpoints import store as checkpointing
from train_lib.checkpoints.same_run import describe_data, kind_before, kind_of, refuse_other_data, say_what_changed
from train_lib.cli import environment
from train_lib.distribution.strategy import create_strategy, describe
from train_lib.distribution.workers import OneWorker
from train_lib.records.event_files import first_line
from train_lib.records.workdir import BAD_EXAMPLES, Workdir
from train_lib.state import PixelScaling, TrainState, assign, create_state, first_not_finite, pixel_scaling, tensors_of


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
        data = read_like(self.config.data, kind_of(self.train_split))
        split = open_split(data, self.source, data.test_split, "test_split", log=lambda line: None)
        self.list_bad_examples()
        return split

    def list_bad_examples(self):
        """Adds to bad_examples.txt what was skipped since."""
        self.workdir.write_bad_examples(self.source.bad.lines())

    def write_down(self):
        """Writes the configuration, and the environment that it is computed in."""
        self.workdir.write_config(self.config)
        about = {"devices": describe(self.strategy), "replicas": self.strategy.num_replicas_in_sync}
        about |= {"parameters": self.state.model.count_params(), "image_shape": list(self.train_split.image_shape)}
        self.workdir.write_json("environment.json", about | environment.describe_machine())

    def save(self, is_best, flush_records=lambda: None):
        """Saves the state as a checkpoint. Returns why that failed, None where it did not; the same on every worker.

        `flush_records` comes first: a checkpoint promises that all records up to its step are in their files.
        """
        tensors = tensors_of(self.state)  # by all: to read a moving statistic is a reduction over the replicas

        def write():
            self.list_bad_examples()
            if spoiled := first_not_finite(tensors):
                return f"{spoiled} is not finite"
            try:
                flush_records()
                self.store.save(self.state.step, tensors, self.describe(), is_best)
            except UnusableFile as error:
                return f"{error.path}: {error.reason}"
            except (OSError, tf.errors.OpError) as error:
                return first_line(error)
            return None

        return self.workers.from_chief(write)

    def describe(self):
        """What a checkpoint says of itself besides its tensors; no wall-clock value."""
        return {
            "config": config_lib.to_values(self.config) | {"workdir": None},
            "class_names": list(self.source.class_names),
            "image_shape": list(self.train_split.image_shape),
            "data": describe_data(self.source, self.train_split, self.validation_split),
            "last_step": self.plan.last_step,
            "progress": self.state.progress(),
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
    validation_split = None
    try:
        data = decide_input(read_like(config.data, kind_before(checkpoint)), source, config.data.train_split, "train_split")
        data = read_like(config.data, workers.gather(data.input)[0])  # of the chief: workers need not have the same memory
        train_split = open_split(data, source, data.train_split, "train_split", log)
        if data.validation_split:
            validation_split = open_split(data, source, data.validation_split, "validation_split", log)
        if data.test_split:
            source.num_examples(data.test_split, "test_split")  # a wrong name shall not surface after the last epoch
    finally:  # also where there is one too many
        workdir.write_bad_examples(source.bad.lines())
    if source.bad.found:
        log(f"{len(source.bad.found)} examples that cannot be used are skipped, listed in {workdir.path / BAD_EXAMPLES}")
    plan = make_plan(config, train_split.num_examples)
    refuse_other_data(config, checkpoint, describe_data(source, train_split, validation_split))
    if checkpoint is None:
        pixels = pixel_scaling(config.data.pixels, train_split, config.data.augmentations)
    else:
        pixels = PixelScaling.from_tensors(checkpoint.tensors("pixels/"), checkpoint.folder)
    state = create_state(config, strategy, len(source.class_names), train_split.image_shape, pixels)
    if checkpoint is not None:
        restore(state, checkpoint, plan, config)
        point_again(state, store, workers, log)
        if state.step >= plan.last_step or state.validation.out_of_patience(config):
            # No turn would follow: nothing be the best where nothing was evaluated, and no checkpoint know what was asked for.
            state.evaluation_owed = True
    elif config.network.init_from:
        initialize(state, config.network.init_from, log)
    return Run(config, workdir, strategy, source, train_split, validation_split, state, plan, store, workers)


def point_again(state, store, workers, log):
    """Lets `latest` and `best` name what a restored state says, which a kill after the rename of its folder forestalled.

    Where the best checkpoint is gone or damaged, the next evaluation is the best: the best is what `best` can name.
    """
    tracker = state.validation
    if not workers.from_chief(lambda: store.point_again(state.step, tracker.best_step)) and tracker.best_step is not None:
        log(f"the best checkpoint, of step {tracker.best_step}, is gone or damaged; the next evaluation counts as the best")
        tracker.best, tracker.best_step, tracker.step = Patience(), None, None


def restore(state, checkpoint, plan, config):
    """Gives a new TrainState the tensors and the progress of a checkpoint.

    A run that has diverged goes on after the batch that ended it, and counts anew; so does one that looks at another value of
    the validation split from here on.
    """
    tensors, stored = checkpoint.tensors(), checkpoint.description["config"]
    for name in state.averaged_weights():  # averaging begins here where the run so far had none
        if (weight := name.replace("ema/", "model/", 1)) in tensors:
            tensors.setdefault(name, tensors[weight])
    if stored.get("momentum") == 0:  # without which there were no slots for it; it begins at rest
        slots = {name: slot for name, slot in state.slots().items() if name.endswith("momentum")}
        tensors = {name: np.zeros(slot.shape, slot.dtype) for name, slot in slots.items()} | tensors
    assign({**state.weights(), **state.slots(), **state.averaged_weights()}, tensors, checkpoint.folder)
    state.set_progress(checkpoint.description["progress"])
    if state.skipped_in_a_row > config.optimization.max_nonfinite_steps:
        state.skipped_in_a_row = 0
    if stored.get("early_stopping_monitor") != config.cadence.early_stopping_monitor:
        state.validation = ValidationTracker(plateau_drops=state.validation.plateau_drops)
    if plan.last_step > checkpoint.description["last_step"]:
        state.validation.stopping.waited = 0  # a longer run was asked for, so an early stop is no reason to end at once


def initialize(state, path, log):
    """Starts from another run's weights, of --init_from; the last layer stays as initialised where its number of classes differs.

    Raises:
      SettingError: the weights are those of another network; UnusableError: they are damaged.
    """
    checkpoint = checkpointing.find_initial(path)
    tensors = checkpoint.evaluated_weights()
    variables = state.weights()
    last_layer = [name for name in variables if name.startswith("model/logits/")] or list(variables)[-2:]
    differing = [name for name in last_layer if name in tensors and tensors[name].shape != tuple(variables[name].shape)]
    if differing:
        log(f"{checkpoint.folder}: {', '.join(last_layer)} left as initialised, the number of classes differs")
    taken = {name: variable for name, variable in variables.items() if not (differing and name in last_layer)}
    try:
        assign(taken, tensors, checkpoint.folder)
    except UnusableError as error:
        raise SettingError("init_from", path, f"{error}; give the --model and --model_options of that run") from None
    for weight, average in zip(state.model.trainable_variables, state.averages, strict=False):
        average.assign(weight.numpy())
    log(f"weights from {checkpoint.folder}")


def restore_best(run):
    """Puts the best checkpoint's weights into the network; returns its step.

    Raises:
      UnusableError: it is damaged.
    """
    best = run.store.find("best")
    assign(run.state.weights(), best.evaluated_weights(), best.folder)
    return best.step
