"""Everything that must survive a crash, in one place."""

import contextlib
import dataclasses
import re

import keras
import numpy as np
import tensorflow as tf

import alexnet
from input_pipeline.common.errors import SettingError, UnusableError
from train_lib.cadence import ValidationTracker
from train_lib.metrics import TrainTotals
from train_lib.optimizers import LossScale, make_optimizers


@dataclasses.dataclass
class TrainState:
    """A run at one step. The position in the data and all randomness are functions of (seed, step), so they need no place.

    Attributes:
      model: images to logits.
      optimizers: a built Keras optimizer for each of model.trainable_variables, which may share it; only its slots and
        `update_step` are used.
      pixels: PixelScaling measured on the training data.
      averages: --ema_decay's averages, variables in the order of model.trainable_variables; empty where it is off.
      loss_scale: of float16, else None.
      step: updates done, skipped ones included.
      validation: what is known about the validation values.
      totals: of the train record under way.
      skipped_in_a_row: updates skipped since the last finite one.
      evaluation_owed: whether the evaluation after `step` is still to be done.
    """

    model: keras.Model
    optimizers: list
    pixels: "PixelScaling"
    averages: list = dataclasses.field(default_factory=list)
    loss_scale: LossScale | None = None
    step: int = 0
    validation: ValidationTracker = dataclasses.field(default_factory=ValidationTracker)
    totals: TrainTotals = dataclasses.field(default_factory=TrainTotals)
    skipped_in_a_row: int = 0
    evaluation_owed: bool = False

    def progress(self):
        """What is not a tensor, as JSON."""
        return {
            "step": self.step,
            "judgement": dataclasses.asdict(self.validation),
            "totals": dataclasses.asdict(self.totals),
            "skipped_in_a_row": self.skipped_in_a_row,
            "evaluation_owed": self.evaluation_owed,
        }

    def set_progress(self, values):
        """The inverse of `progress`."""
        self.step = values["step"]
        self.validation = ValidationTracker.from_json(values["judgement"])
        self.totals = TrainTotals(**values["totals"])
        self.skipped_in_a_row = values["skipped_in_a_row"]
        self.evaluation_owed = values.get("evaluation_owed", False)

    def weights(self):
        """{name: variable} of the network: kernels, biases, moving statistics, random states."""
        return _by_path("model", self.model.variables)

    def slots(self):
        """{name: variable} of the optimizers and the loss scale; the learning rate is no state, it comes from the schedule."""
        each = dict.fromkeys(self.optimizers)
        slots = _by_path("optimizer", [v for one in each for v in one.variables if v is not one._learning_rate])
        if self.loss_scale:
            slots |= {"loss_scale/value": self.loss_scale.value, "loss_scale/good_steps": self.loss_scale.good_steps}
        return slots

    def averaged_weights(self):
        """{name: variable} of the averages, {} where there are none."""
        weights = self.model.trainable_variables if self.averages else []
        return {f"ema/{weight.path}": average for weight, average in zip(weights, self.averages, strict=True)}

    @contextlib.contextmanager
    def averages_in_place(self):
        """Inside, the network has the averages for weights."""
        weights = self.model.trainable_variables if self.averages else []
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
    """The network's input is (pixel - offset) * scale, per channel, pixels in [0, 255]; and what augmentation measured.

    Attributes:
      offset: float64 [3].
      scale: float64 [3].
      mean: of the training pixels, float64 [3], with which cutout fills; None where --augment does not name it.
      color_axes: float64 [3, 3], of pca_color; column i is eigenvector i of the channels' covariance times its eigenvalue,
        that of pixels in [0, 1], and times 255. None where --augment does not name it.
    """

    offset: np.ndarray
    scale: np.ndarray
    mean: np.ndarray | None = None
    color_axes: np.ndarray | None = None

    def tensors(self):
        """{name: array} of what is there, for a checkpoint."""
        fields = {f"pixels/{field.name}": getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if value is not None}

    @classmethod
    def from_tensors(cls, tensors, source):
        """The inverse of `tensors`; further ones are ignored. Raises UnusableError, naming `source`, where they do not fit."""
        found = cls(*(tensors.get(f"pixels/{field.name}") for field in dataclasses.fields(cls)))
        for name, shape in (("offset", (3,)), ("scale", (3,)), ("mean", (3,)), ("color_axes", (3, 3))):
            tensor = getattr(found, name)
            if not (tensor is None and name in ("mean", "color_axes")) and getattr(tensor, "shape", None) != shape:
                raise UnusableError(f"{source}: holds no pixels/{name} of shape {list(shape)}; it is no checkpoint of a run")
        return found


def _by_path(prefix, variables):
    named = {f"{prefix}/{variable.path}": variable for variable in variables}
    assert len(named) == len(variables), f"two variables of the {prefix} share a path"
    return named


def pixel_scaling(pixels, split, augmentations=()):
    """The PixelScaling for --pixels and --augment; measures on the training split what they need, and nothing else."""
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
    """PixelScaling's `color_axes` from the covariance of the channels, float64 [3, 3], of pixels in [0, 255].

    The largest eigenvalue comes last. Of an eigenvector and its negative, the one whose largest component is positive.
    """
    eigenvalues, eigenvectors = np.linalg.eigh(covariance / 255**2)
    largest = eigenvectors[np.argmax(np.abs(eigenvectors), axis=0), range(3)]
    return 255 * eigenvalues * eigenvectors * np.sign(largest)


def create_state(config, strategy, num_classes, image_shape, pixels):
    """Builds the network and the optimizers on all replicas of a strategy.

    Raises:
      SettingError: the network cannot take images of this shape.
    """
    with strategy.scope():
        try:
            model = alexnet.build(
                config.network.model, num_classes, tuple(image_shape), options=config.network.model_options,
                dropout_rate=config.network.dropout_rate, precision=config.network.precision, seed=config.general.seed,
            )
        except ValueError as error:
            raise SettingError("image_size", image_shape[0], " ".join(str(error).split())) from None
        except TypeError as error:  # what TensorFlow raises for an operation that does not know a dtype
            if "DataType" not in str(error):
                raise
            reason = next(line for line in str(error).splitlines() if "DataType" in line)
            layer = re.search(r"of '(\w+)' \(of type", str(error))
            named = f"the layer {layer[1]}" if layer else "a layer"
            remedy = f"{named} of {config.network.model} cannot take it ({_plain(reason)}); give another"
            raise SettingError("precision", config.network.precision, remedy) from None
        _check_xla(config, strategy, model)
        optimizers = make_optimizers(config.optimization, model.trainable_variables)
        averaged = model.trainable_variables if config.optimization.ema_decay else []
        averages = [tf.Variable(weight.numpy(), trainable=False) for weight in averaged]
        loss_scale = LossScale() if config.network.precision == "float16" else None
    return TrainState(model, optimizers, pixels, averages, loss_scale)


def _plain(text):
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _check_xla(config, strategy, model):
    """Raises SettingError where batch normalization would have to reduce over the replicas inside a compiled forward pass."""
    layers = [layer.name for layer in model.layers if getattr(layer, "synchronized", False)]
    if config.device.xla == "on" and layers and strategy.num_replicas_in_sync > 1:
        remedy = f"{layers[0]} of {config.network.model} sums over the replicas, which XLA cannot compile; give off"
        raise SettingError("xla", "on", remedy)


def assign(variables, tensors, source):
    """Gives every variable the tensor of its name; nothing is assigned unless all names and shapes agree.

    Args:
      variables: {name: Keras variable}.
      tensors: {name: array}; further ones are ignored.
      source: what to call the tensors in an error.

    Raises:
      UnusableError: a tensor is missing or has another shape.
    """
    for name, variable in variables.items():
        if name not in tensors:
            raise UnusableError(f"{source}: holds no {name}; it comes from another network or optimizer")
        if tensors[name].shape != tuple(variable.shape):
            shapes = f"{list(tensors[name].shape)}, the network's has {list(variable.shape)}"
            raise UnusableError(f"{source}: {name} has shape {shapes}; it comes from another network")
    for name, variable in variables.items():
        variable.assign(tensors[name])


def tensors_of(state):
    """{name: NumPy array} of everything in a TrainState that is a tensor."""
    variables = {**state.weights(), **state.slots(), **state.averaged_weights()}
    return {name: keras.ops.convert_to_numpy(variable) for name, variable in variables.items()} | {
        **state.pixels.tensors(),
        "step": np.int64(state.step),
    }


def first_not_finite(tensors):
    """The name of the first of {name: array} that holds a NaN or an infinity, None where none does."""
    return next((name for name, tensor in tensors.items() if tensor.dtype.kind == "f" and not np.isfinite(tensor).all()), None)
