"""Opens a run: data, strategy, network, optimizer, and the checkpoint that it goes on from."""

import dataclasses

import numpy as np
import tensorflow as tf

from input_pipeline.common.batches import ONE_REPLICA, timed
from input_pipeline.common.errors import SettingError, UnusableError, one_line_of
from input_pipeline.common.small_files import UnusableFile
from input_pipeline.sources import open_source
from input_pipeline.sources.base import Source
from input_pipeline.splits import decide_input, open_split, read_like
from train_lib import config as config_lib
from train_lib.cadence import Plan, make_plan
from train_lib.checkpoints import resume
from train_lib.checkpoints.store import CheckpointStore, find_initial
from train_lib.cli import environment
from train_lib.distribution.strategy import create_strategy, describe, distribute
from train_lib.distribution.workers import OneWorker
from train_lib.records.code import ENVIRONMENT, record_code
from train_lib.records.workdir import BAD_EXAMPLES, Workdir
from train_lib.state import PixelScaling, TrainState, assign, create_state, fit_whitening, pixel_scaling, tensors_of


@dataclasses.dataclass
class Run:
    """An open run: its data, and its state so far.

    The splits are a ResidentSplit, DeviceSplit or StreamingSplit; `validation_split` is None without one. `workers` are those
    that train together, OneWorker on this machine alone.
    """

    config: config_lib.ExperimentConfig
    workdir: Workdir
    strategy: tf.distribute.Strategy
    source: Source
    train_split: object
    validation_split: object
    state: TrainState
    plan: Plan
    store: CheckpointStore
    workers: OneWorker = dataclasses.field(default_factory=OneWorker)

    def training_batches(self, first_step=0, strategy=None, make_batches=None):
        """An endless iterator over per-replica training batches, from `first_step` on, on the devices of a strategy.

        Besides images and labels, a batch has the seconds that were "waited" for it; not under --deterministic, because
        TensorFlow then refuses to read the clock. `make_batches` may stand for `training_dataset`; it gets a Shard.
        """
        def batches(shard):
            dataset = make_batches(shard) if make_batches else self.training_dataset(first_step, shard)
            return dataset if self.config.general.deterministic else timed(dataset)

        return distribute(strategy or self.strategy, batches, self.train_split)

    def training_dataset(self, first_step=0, shard=ONE_REPLICA, split=None):
        """The training batches of the replicas of a Shard, from `first_step` on, as an endless tf.data.Dataset.

        `split` may stand for the training split, such as a copy of it with a smaller shuffle buffer.
        """
        config, split = self.config, split or self.train_split
        return split.training_batches(
            config.general.seed, first_step, config.optimization.global_batch_size, config.data.augmentations, shard)

    def open_test_split(self):
        """Opens the test split, in the way in which the training split is read."""
        data = read_like(self.config.data, resume.kind_of(self.train_split))
        split = open_split(data, self.source, data.test_split, "test_split", log=lambda line: None)
        self.list_bad_examples()
        return split

    def list_bad_examples(self):
        """Adds the examples that were skipped since the last call to bad_examples.txt."""
        self.workdir.write_bad_examples(self.source.bad.lines())

    def write_down(self, log=print):
        """Writes the configuration, the environment and the code into the workdir. `log` gets a line if the code is another."""
        self.workdir.write_config(self.config)
        about = {"devices": describe(self.strategy), "replicas": self.strategy.num_replicas_in_sync}
        about |= {"parameters": self.state.model.count_params(), "image_shape": list(self.train_split.image_shape)}
        about |= environment.describe_machine() | record_code(self.workdir, log)
        self.workdir.write_json(ENVIRONMENT, about)

    def save(self, is_best, log=None):
        """Saves the state as a checkpoint. Returns None, or the reason why it failed; the same on every worker.

        `log` is the RunLog, which is flushed first: a checkpoint promises that all records up to its step are in their files.
        """
        tensors = tensors_of(self.state)  # every worker does this: to read a moving statistic is a reduction over the replicas

        def write():
            self.list_bad_examples()
            for name, tensor in tensors.items():
                if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
                    return f"{name} is not finite"
            try:
                if log:
                    log.flush()
                self.store.save(self.state.step, tensors, self.describe(), is_best, self.state.uncut_best_step())
            except UnusableFile as error:
                return f"{error.path}: {error.reason}"
            except (OSError, tf.errors.OpError) as error:
                return one_line_of(error)
            return None

        return self.workers.from_chief(write)

    def describe(self):
        """What a checkpoint says about itself besides its tensors. Equal runs write equal files: there is no wall-clock value."""
        return {
            "config": config_lib.to_values(self.config) | {"workdir": None},
            "class_names": list(self.source.class_names),
            "image_shape": list(self.train_split.image_shape),
            "data": resume.describe_data(self.source, self.train_split, self.validation_split),
            "last_step": self.plan.last_step,
            "progress": self.state.progress(),
        }


def open_run(config, workdir, checkpoint, store, log=print, workers=None):
    """Opens everything that training needs, as a Run.

    `checkpoint` is the one to go on from, None for a new run; `store` is that of the workdir; `log` is called with each line for
    the user. Raises ExpectedError if settings, data, devices, network and checkpoint do not fit together.
    """
    if checkpoint is not None:
        resume.report_changes(config, checkpoint, log)
    workers = workers or OneWorker()
    strategy = create_strategy(config, workers)
    source, train_split, validation_split = _open_data(config.data, workdir, checkpoint, workers, log)
    plan = make_plan(config, train_split.num_examples)
    resume.refuse_other_data(config, checkpoint, resume.describe_data(source, train_split, validation_split))
    if checkpoint is None:
        pixels = pixel_scaling(config.data.pixels, train_split, config.data.augmentations)
    else:
        pixels = PixelScaling.from_tensors(checkpoint.tensors("pixels/"), checkpoint.folder)
    state = create_state(config, strategy, len(source.class_names), train_split.image_shape, pixels)
    if checkpoint is not None:
        resume.restore(state, checkpoint, plan, config, log)
        resume.repair_pointers(state, store, plan, config, workers, log)
    elif config.network.init_from:
        initialize(state, config.network.init_from, log)
    else:
        fit_whitening(state, train_split)
    return Run(config, workdir, strategy, source, train_split, validation_split, state, plan, store, workers)


def _open_data(config, workdir, checkpoint, workers, log):
    """Opens the source, the training split and the validation split (None without one) of a DataConfig."""
    source = workers.chief_first(lambda: open_source(config))  # the chief prepares the data if need be
    for note in source.notes:
        log(note)
    validation_split = None
    try:
        for flag in ("train_split", "validation_split", "test_split"):
            if split := getattr(config, flag):
                source.num_examples(split, flag)  # report a wrong name now, not after minutes of decoding or the last epoch
        ours = decide_input(read_like(config, resume.kind_before(checkpoint)), source, config.train_split, "train_split")
        config = read_like(config, workers.gather(ours.input)[0])  # the chief decides: the workers' memory may differ
        train_split = open_split(config, source, config.train_split, "train_split", log)
        if config.validation_split:
            validation_split = open_split(config, source, config.validation_split, "validation_split", log)
    finally:  # also if there is one bad example too many
        workdir.write_bad_examples(source.bad.lines())
    if source.bad.found:
        log(f"{len(source.bad.found)} examples that cannot be used are skipped, listed in {workdir.path / BAD_EXAMPLES}")
    return source, train_split, validation_split


def initialize(state, path, log):
    """Starts from the weights of another run, --init_from. The last layer is left as it is if the number of classes differs.

    Raises SettingError if the weights belong to another network, UnusableError if they are damaged.
    """
    checkpoint = find_initial(path)
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
    for weight, average in zip(state.averaged, state.averages, strict=True):
        average.assign(weight.numpy())
    log(f"weights from {checkpoint.folder}")


def restore_best(run):
    """Puts the weights of the best checkpoint into the network and returns its step."""
    best = run.store.find("best")
    assign(run.state.weights(), best.evaluated_weights(), best.folder)
    return best.step
