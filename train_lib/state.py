"""Everything that must survive a crash, in one place."""

import contextlib
import dataclasses
import re

import keras
import numpy as np
import tensorflow as tf

import alexnet
from alexnet.later_layers import PatchWhitening
from input_pipeline.common.errors import SettingError, UnusableError
from train_lib.cadence import ValidationTracker
from train_lib.metrics import TrainTotals
from train_lib.optimizers import LossScale, make_optimizers
from train_lib.steps import METRICS


@dataclasses.dataclass
class TrainState:
    """A run at one step.

    The position in the data, the augmentation and the dropout masks are functions of (seed, step), so nothing about them needs
    saving.
    """

    model: keras.Model  # from images to logits
    # One built Keras optimizer per entry of model.trainable_variables; they may share one. Only slots and `update_step` are used.
    optimizers: list
    pixels: "PixelScaling"  # measured on the training data
    # What is evaluated in place of the trained weights, in the order of `averaged`: the averages of --ema_decay, or Lookahead's.
    averages: list = dataclasses.field(default_factory=list)
    looks_ahead: bool = False  # whether the averages are the slow weights of Lookahead
    loss_scale: LossScale | None = None  # under float16
    # The variables that a forward pass in training changes, as batch normalization does; found in the model if not given.
    batch_statistics: list | None = None
    step: int = 0  # updates done, skipped ones included
    validation: ValidationTracker = dataclasses.field(default_factory=ValidationTracker)
    totals: TrainTotals = dataclasses.field(default_factory=TrainTotals)  # of the train record that is being collected
    skipped_in_a_row: int = 0  # updates skipped since the last finite one
    evaluation_owed: bool = False  # whether the evaluation after `step` is still to be done
    # The entries of `progress` as a longer run has them at this step. Not empty where this run records or evaluates only because
    # it ends: so a run in pieces counts like an uncut one.
    uncut: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.batch_statistics is None:
            self.batch_statistics = find_batch_statistics(self.model) if self.model else []

    def advance(self, report):
        """Counts the steps of a StepsReport."""
        self.totals.add(report.metrics, report.finite, METRICS)
        self.step += report.num_steps
        self.skipped_in_a_row = report.skipped_in_a_row
        self.uncut = {}

    def record_values(self):
        """The metrics of the train record that is being collected."""
        return self.totals.values(METRICS)

    def start_record(self):
        """Begins the next train record."""
        self.totals = TrainTotals()

    def keep_uncut(self, name):
        """Keeps an entry of `progress`, before it counts a record or evaluation that a longer run does not have here."""
        self.uncut.setdefault(name, self.progress()[name])

    def uncut_best_step(self):
        """The step of the best checkpoint of a longer run, None if there is none. It must be kept."""
        return self.uncut.get("judgement", {}).get("best_step")

    def last_records(self, goes_on):
        """{kind: the last step that has a record}, for a run that `goes_on` beyond this step, or ends here."""
        uncut = self.uncut if goes_on else {}
        no_evaluation = self.evaluation_owed or "judgement" in uncut
        return {"train": self.step - ("totals" in uncut), "validation": self.step - no_evaluation}

    def progress(self):
        """Everything that is not a tensor, as JSON. The names are part of the format of a checkpoint."""
        return {
            "step": self.step,
            "judgement": dataclasses.asdict(self.validation),
            "totals": dataclasses.asdict(self.totals),
            "skipped_in_a_row": self.skipped_in_a_row,
            "evaluation_owed": self.evaluation_owed,
            "uncut": self.uncut,
        }

    def set_progress(self, values):
        """The inverse of `progress`."""
        self.step = values["step"]
        self.validation = ValidationTracker.from_json(values["judgement"])
        self.totals = TrainTotals(**values["totals"])
        self.skipped_in_a_row = values["skipped_in_a_row"]
        self.evaluation_owed, self.uncut = values.get("evaluation_owed", False), values.get("uncut", {})

    def weights(self):
        """{name: variable} of the network: kernels, biases, moving statistics, states of random generators."""
        return _by_path("model", self.model.variables)

    def slots(self):
        """{name: variable} of the optimizers and the loss scale. The learning rate is not saved: it comes from the schedule."""
        each = dict.fromkeys(self.optimizers)
        slots = _by_path("optimizer", [v for one in each for v in one.variables if v is not one._learning_rate])
        if self.loss_scale:
            slots |= {"loss_scale/value": self.loss_scale.value, "loss_scale/good_steps": self.loss_scale.good_steps}
        return slots

    @property
    def averaged(self):
        """The network's variables that have averages: the trainable ones, and under Lookahead its batch statistics too."""
        return [*self.model.trainable_variables, *self.batch_statistics][: len(self.averages)]

    def averaged_weights(self):
        """{name: variable} of the averages; {} if there are none."""
        return {f"ema/{weight.path}": average for weight, average in zip(self.averaged, self.averages, strict=True)}

    @contextlib.contextmanager
    def averages_in_place(self):
        """Context manager in which the network uses the averages as its weights."""
        weights = self.averaged
        kept = [keras.ops.convert_to_numpy(weight) for weight in weights]
        try:
            for weight, average in zip(weights, self.averages, strict=True):
                weight.assign(average.numpy())
            yield
        finally:
            for weight, value in zip(weights, kept, strict=True):
                weight.assign(value)


@dataclasses.dataclass(frozen=True)
class PixelScaling:
    """How pixels in [0, 255] become the network's input, (pixel - offset) * scale per channel, and what augmentation measured."""

    offset: np.ndarray  # float64 [3]
    scale: np.ndarray  # float64 [3]
    mean: np.ndarray | None = None  # float64 [3], of the training pixels; cutout fills its square with it
    # For pca_color, float64 [3, 3]. Column i is 255 times eigenvector i of the covariance of the channels times its eigenvalue,
    # both of pixels in [0, 1].
    color_axes: np.ndarray | None = None

    def tensors(self):
        """{name: array} of the fields that are not None, for a checkpoint."""
        fields = {f"pixels/{field.name}": getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if value is not None}

    @classmethod
    def from_tensors(cls, tensors, source):
        """The inverse of `tensors`; other names are ignored. Raises UnusableError, naming `source`, if a field is missing or has
        another shape."""
        found = cls(*(tensors.get(f"pixels/{field.name}") for field in dataclasses.fields(cls)))
        for name, shape in (("offset", (3,)), ("scale", (3,)), ("mean", (3,)), ("color_axes", (3, 3))):
            tensor = getattr(found, name)
            if not (tensor is None and name in ("mean", "color_axes")) and getattr(tensor, "shape", None) != shape:
                raise UnusableError(f"{source}: holds no pixels/{name} of shape {list(shape)}; it is not the checkpoint of a run")
        return found


def _by_path(prefix, variables):
    named = {f"{prefix}/{variable.path}": variable for variable in variables}
    assert len(named) == len(variables), f"two variables of the {prefix} share a path"
    return named


def pixel_scaling(pixels, split, augmentations=()):
    """The PixelScaling for --pixels and --augment. Measures on the training split only what they need."""
    if pixels == "standardized" or "cutout" in augmentations:
        mean, deviation = split.pixel_statistics()
    if pixels == "zero_one":
        offset, scale = np.zeros(3), np.full(3, 1 / 255)
    elif pixels == "minus_one_one":
        offset, scale = np.full(3, 127.5), np.full(3, 1 / 127.5)
    else:
        offset, scale = mean, 1 / np.maximum(deviation, 1.0)
    color_axes = principal_colors(split.pixel_covariance()) if "pca_color" in augmentations else None
    return PixelScaling(offset, scale, mean if "cutout" in augmentations else None, color_axes)


def principal_colors(covariance):
    """`PixelScaling.color_axes` from the covariance of the channels, float64 [3, 3], of pixels in [0, 255].

    The largest eigenvalue comes last. The sign of each eigenvector is chosen so that its largest component is positive.
    """
    eigenvalues, eigenvectors = np.linalg.eigh(covariance / 255**2)
    largest = eigenvectors[np.argmax(np.abs(eigenvectors), axis=0), range(3)]
    return 255 * eigenvalues * eigenvectors * np.sign(largest)


def create_state(config, strategy, num_classes, image_shape, pixels):
    """Builds the network and the optimizers on all replicas of a strategy, as a TrainState at step 0.

    Raises SettingError as `build_network` does, or if XLA cannot compile the network.
    """
    with strategy.scope():
        model = build_network(config, num_classes, image_shape)
        _check_xla(config, strategy, model)
        optimizers = make_optimizers(config.optimization, model.trainable_variables)
        looks_ahead = config.optimization.lookahead_steps > 0
        averaged = looks_ahead or config.optimization.ema_decay > 0
        averages = [tf.Variable(weight.numpy(), trainable=False) for weight in model.trainable_variables if averaged]
        loss_scale = LossScale() if config.network.precision == "float16" else None
        state = TrainState(model, optimizers, pixels, averages, looks_ahead, loss_scale)
        if looks_ahead:
            state.averages += [_average_of_statistic(variable) for variable in state.batch_statistics]
        return state


def build_network(config, num_classes, image_shape):
    """The network of an ExperimentConfig, a keras.Model from images to logits.

    Raises SettingError if the network cannot take images of this shape, or cannot compute in this precision.
    """
    network = config.network
    try:
        return alexnet.build(
            network.model, num_classes, tuple(image_shape), options=network.model_options,
            dropout_rate=network.dropout_rate, precision=network.precision, seed=config.general.seed)
    except ValueError as error:
        raise SettingError("image_size", image_shape[0], " ".join(str(error).split())) from None
    except TypeError as error:  # TensorFlow raises it for an operation that does not support a dtype
        if "DataType" not in str(error):
            raise
        reason = next(line for line in str(error).splitlines() if "DataType" in line)
        layer = re.search(r"of '(\w+)' \(of type", str(error))
        named = f"the layer {layer[1]}" if layer else "a layer"
        reason = re.sub(r"\x1b\[[0-9;]*m", "", reason)  # the colours of a terminal
        remedy = f"{named} of {network.model} cannot take it ({reason}); give another"
        raise SettingError("precision", network.precision, remedy) from None


def _average_of_statistic(variable):
    """Lookahead's slow copy of a batch statistic. Like the statistic, each replica changes its own, and all of them are equal."""
    return tf.Variable(
        variable.numpy(), trainable=False, synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)


def find_batch_statistics(model):
    """The variables of a network that its forward pass changes in training.

    Keras lists frozen kernels beside them. These must not be copied at every step like statistics, so if there are any, a forward
    pass on one black image tells the two apart.
    """
    if all(layer.trainable and not isinstance(layer, PatchWhitening) for layer in model.layers):
        return list(model.non_trainable_weights)
    with keras.StatelessScope() as scope:
        model(tf.zeros((1, *model.inputs[0].shape[1:]), model.inputs[0].dtype), training=True)
    return [variable for variable in model.non_trainable_weights if scope.get_current_value(variable) is not None]


def _check_xla(config, strategy, model):
    """Raises SettingError if batch normalization would have to reduce over the replicas inside a compiled forward pass."""
    layers = [layer.name for layer in model.layers if getattr(layer, "synchronized", False)]
    if config.device.xla == "on" and layers and strategy.num_replicas_in_sync > 1:
        remedy = f"{layers[0]} of {config.network.model} sums over the replicas, which XLA cannot compile; give off"
        raise SettingError("xla", "on", remedy)


def fit_whitening(state, split):
    """Fits the layers that whiten patches to the first images of a training split."""
    for layer in state.model.layers:
        if isinstance(layer, PatchWhitening):
            scale = np.tile(state.pixels.scale, layer.size**2)
            layer.fit(split.patch_covariance(layer.size) * np.outer(scale, scale))


def assign(variables, tensors, source):
    """Assigns to every variable the tensor of its name. Nothing is assigned unless all names and shapes agree.

    `variables` is {name: Keras variable}, `tensors` {name: array}; other names are ignored. Raises UnusableError, which names
    `source`, if a tensor is missing or has another shape.
    """
    for name, variable in variables.items():
        if name not in tensors:
            raise UnusableError(f"{source}: holds no {name}; it comes from another network or optimizer")
        if tensors[name].shape != tuple(variable.shape):
            shapes = f"{list(tensors[name].shape)}, the network's is {list(variable.shape)}"
            raise UnusableError(f"{source}: {name} has shape {shapes}; it comes from another network")
    for name, variable in variables.items():
        variable.assign(tensors[name])


def tensors_of(state):
    """{name: NumPy array} of all tensors in a TrainState."""
    variables = {**state.weights(), **state.slots(), **state.averaged_weights()}
    return {name: keras.ops.convert_to_numpy(variable) for name, variable in variables.items()} | {
        **state.pixels.tensors(),
        "step": np.int64(state.step),
    }
