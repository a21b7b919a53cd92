"""Everything that must survive a crash, in one place."""

import dataclasses

import keras
import numpy as np

import alexnet
from input_pipeline.errors import SettingError
from train_lib.early_stopping import Judgement
from train_lib.metrics import TrainTotals


@dataclasses.dataclass
class TrainState:
    """A run at one step. The position in the data and all randomness are functions of (seed, step), so they need no place.

    Attributes:
      model: images to logits.
      optimizer: Keras optimizer, built; only its slots and `update_step` are used.
      pixels: PixelScaling measured on the training data.
      step: updates done, skipped ones included.
      judgement: what is known about the validation values.
      totals: of the train record under way.
      skipped_in_a_row: updates skipped since the last finite one.
    """

    model: keras.Model
    optimizer: keras.Optimizer
    pixels: "PixelScaling"
    step: int = 0
    judgement: Judgement = dataclasses.field(default_factory=Judgement)
    totals: TrainTotals = dataclasses.field(default_factory=TrainTotals)
    skipped_in_a_row: int = 0

    def progress(self):
        """What is not a tensor, as JSON."""
        return {
            "step": self.step,
            "judgement": dataclasses.asdict(self.judgement),
            "totals": dataclasses.asdict(self.totals),
            "skipped_in_a_row": self.skipped_in_a_row,
        }

    def set_progress(self, values):
        """The inverse of `progress`."""
        self.step = values["step"]
        self.judgement = Judgement.from_json(values["judgement"])
        self.totals = TrainTotals(**values["totals"])
        self.skipped_in_a_row = values["skipped_in_a_row"]

    def weights(self):
        """{name: variable} of the network: kernels, biases, moving statistics, random states."""
        return _by_path("model", self.model.variables)

    def slots(self):
        """{name: variable} of the optimizer; its learning rate is not state, it comes from the schedule."""
        return _by_path("optimizer", [v for v in self.optimizer.variables if v is not self.optimizer._learning_rate])


@dataclasses.dataclass(frozen=True)
class PixelScaling:
    """The network's input is (pixel - offset) * scale, per channel; float64 [3] each, pixels in [0, 255]."""

    offset: np.ndarray
    scale: np.ndarray


def _by_path(prefix, variables):
    named = {f"{prefix}/{variable.path}": variable for variable in variables}
    assert len(named) == len(variables), f"two variables of the {prefix} share a path"
    return named


def pixel_scaling(pixels, split):
    """The PixelScaling for --pixels; "standardized" measures the training split."""
    if pixels == "zero_one":
        return PixelScaling(np.zeros(3), np.full(3, 1 / 255))
    if pixels == "minus_one_one":
        return PixelScaling(np.full(3, 127.5), np.full(3, 1 / 127.5))
    mean, deviation = split.pixel_statistics()
    return PixelScaling(mean, 1 / np.maximum(deviation, 1.0))


def create_state(config, strategy, num_classes, image_shape, pixels):
    """Builds the network and the optimizer on all replicas of a strategy.

    Raises:
      SettingError: the network cannot take images of this shape.
    """
    with strategy.scope():
        try:
            model = alexnet.build(
                config.network.model, num_classes, tuple(image_shape), options=config.network.model_options,
                dropout_rate=config.network.dropout_rate, precision=config.network.precision, seed=config.run.seed,
            )
        except ValueError as error:
            raise SettingError("image_size", image_shape[0], " ".join(str(error).split())) from None
        optimizer = make_optimizer(config.optimization)
        optimizer.build(model.trainable_variables)
    return TrainState(model, optimizer, pixels)


def make_optimizer(config):
    """The Keras optimizer of an OptimizerConfig: its update rule alone, all else is done in `steps`."""
    if config.optimizer == "sgd":
        return keras.optimizers.SGD(config.learning_rate, momentum=config.momentum, nesterov=config.nesterov, name="sgd")
    # Decoupled weight decay is a line in `steps`, so adamw needs no class of its own here.
    return keras.optimizers.Adam(config.learning_rate, name=config.optimizer)
