"""Evaluation: the eval step, test views, the evaluation of a split, and the mode `evaluate`."""

import dataclasses
import math

import numpy as np
import tensorflow as tf

from input_pipeline.common.batches import num_evaluation_steps
from input_pipeline.common.errors import SettingError
from input_pipeline.sources import open_source
from input_pipeline.splits import open_split, read_like
from train_lib.checkpoints.description import check_description
from train_lib.checkpoints.resume import FIXED_FOR_USE, kind_before, refuse_other_experiment
from train_lib.checkpoints.store import CheckpointStore
from train_lib.cli.failures import explained
from train_lib.distribution.strategy import create_strategy, distribute
from train_lib.distribution.workers import OneWorker
from train_lib.metrics import Mistakes, SplitTotals
from train_lib.records import evaluation_files
from train_lib.records.terminal import number, percent
from train_lib.state import PixelScaling, assign, create_state
from train_lib.steps import scale_pixels

MOST_CLASSES_IN_TABLE = 20


def make_eval_step(strategy, state, test_crops=1):
    """Compiles the forward pass for evaluation: it takes per-replica images and returns per-replica logits [b, classes].

    With test_crops=10, the logits are the logarithm of the mean prediction over ten views of each image. With 2 and 6, they are
    the mean of the logits of `mirrored_views` and `shifted_views`.
    """

    dtype = state.model.inputs[0].dtype

    def logits_of(images):
        return state.model(scale_pixels(images, state.pixels, dtype), training=False)

    def forward(batch):
        if test_crops == 1:
            return logits_of(batch["image"])
        images = tf.cast(batch["image"], dtype)  # GPUs have no kernels that pad and stack uint8
        if test_crops == VIEWS:
            return mean_prediction(logits_of, ten_views(images, *state.model.inputs[0].shape[1:3]))
        views = mirrored_views(images) if test_crops == 2 else shifted_views(images)
        return mean_logits(logits_of, views, VIEW_WEIGHTS[test_crops])

    @tf.function
    def eval_step(batch):
        return strategy.run(forward, args=(batch,))

    return eval_step


VIEWS = 10
VIEW_WEIGHTS = {2: [1 / 2] * 2, 6: [1 / 4] * 2 + [1 / 8] * 4}  # of the logits of `mirrored_views` and `shifted_views`
PADDED_SHARE = 8  # of the height; the training crop pads by the same share


def ten_views(images, height, width):
    """The windows at the four corners and in the middle, and their mirror images (paper, section 4.1).

    Images of the size of the network's input, `height` x `width`, are first padded with zeros by an eighth of their height, as
    for the random crop in training. Larger ones, which come from a stream, are cut as they are.

    Returns a list of ten [b, height, width, 3]: top left, top right, bottom left, bottom right, middle, then the mirror
    images.
    """
    if images.shape[1:3] == (height, width):
        padding = height // PADDED_SHARE
        images = tf.pad(images, [[0, 0], [padding, padding], [padding, padding], [0, 0]])
    down, right = images.shape[1] - height, images.shape[2] - width
    corners = [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]
    windows = [images[:, top : top + height, left : left + width] for top, left in corners]
    return windows + [window[:, :, ::-1] for window in windows]


def mean_prediction(logits_of, views):
    """The logarithm of the mean of the softmax predictions for several views, float32 or float64 [b, classes].

    It can be used as logits, because its softmax is that mean. Loss, accuracy and top-5 accuracy then evaluate the mean.
    `logits_of` maps one of the `views`, [b, height, width, 3], to logits, float [b, classes].
    """

    def log_probabilities(view):
        logits = logits_of(view)
        return tf.nn.log_softmax(logits if logits.dtype == tf.float64 else tf.cast(logits, tf.float32))

    return tf.reduce_logsumexp(_of_each(log_probabilities, views), axis=0) - math.log(len(views))


def mirrored_views(images):
    """The images and their mirror images: a list of two [b, height, width, 3]."""
    return [images, images[:, :, ::-1]]


def shifted_views(images):
    """The six views of airbench (Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", section 3.5).

    The images and their mirror images; both shifted by one pixel up and left; both shifted down and right. What comes in at the
    border is the reflected image. A list of six [b, height, width, 3].
    """
    plain, (height, width) = mirrored_views(images), images.shape[1:3]
    padded = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]], "REFLECT")
    shifted = [padded[:, first : first + height, first : first + width] for first in (2, 0)]
    return [*plain, *(view for window in shifted for view in mirrored_views(window))]


def mean_logits(logits_of, views, weights):
    """The weighted mean of the logits for several views, float [b, classes]. `logits_of` and `views` as in `mean_prediction`."""
    logits = _of_each(logits_of, views)
    return tf.tensordot(tf.constant(weights, logits.dtype), logits, axes=1)


def _of_each(function, views):
    """The results of a function for each of the views, stacked.

    One view after the other needs no more memory than one view; the loop traces the network twice instead of ten times.
    """
    first = function(views[0])
    others = tf.map_fn(function, tf.stack(views[1:]), parallel_iterations=1, fn_output_signature=first.dtype)
    return tf.concat([first[tf.newaxis], others], axis=0)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One evaluation of a split, as the hooks of a run see it."""

    kind: str  # "validation" or "test"
    step: int  # of the weights that were evaluated
    values: dict | None  # {metric: value}, None without a split
    is_best: bool  # whether it is the best validation so far
    evaluator: "SplitEvaluator | None"  # with totals and mistakes; None without a split


class SplitEvaluator:
    """Evaluates a split as often as you ask, with the weights of that moment. It keeps one iterator alive.

    `eval_step` comes from `make_eval_step`, with the same `test_crops` views per image. If several workers evaluate a share each,
    all of them get the same totals.

    Attributes:
      totals: SplitTotals of the newest evaluation, None before the first.
      mistakes: its Mistakes, among the examples that this worker evaluated.
    """

    def __init__(self, strategy, eval_step, split, num_classes, global_batch_size, workers=None, test_crops=1):
        self._workers = workers or OneWorker()
        self._strategy = strategy
        self._eval_step = eval_step
        self._num_classes = num_classes
        self.totals = self.mistakes = None
        self._steps = num_evaluation_steps(split.num_examples, global_batch_size)
        self._iterator = distribute(
            strategy, lambda shard: split.evaluation_batches(global_batch_size, shard, test_crops), split)

    def evaluate(self, stop_requested=lambda: False):
        """Goes through the split once and counts every example once. Returns SplitTotals, or None if it was asked to stop.

        It asks `stop_requested` before each batch. If the answer is True, the evaluation ends there, and no other can follow.
        """
        totals, mistakes = SplitTotals(self._num_classes), Mistakes()
        for _ in range(self._steps):
            if stop_requested():
                return None
            batch = next(self._iterator)
            logits = self._eval_step(batch)
            outputs = [self._host(values) for values in (logits, batch["label"], batch["weight"])]
            totals.add(*outputs)
            mistakes.add(*outputs, lambda images=batch["image"]: self._host(images))
        totals.add_up(self._workers.sum)
        self.totals, self.mistakes = totals, mistakes
        return totals

    def _host(self, per_replica):
        return np.concatenate([value.numpy() for value in self._strategy.experimental_local_results(per_replica)])


def evaluate_weights(evaluator, state, stop_requested):
    """The values of a SplitEvaluator for a TrainState, or None if it was asked to stop.

    With --ema_decay they are those of the averages; loss and accuracy of the weights themselves get the prefix "raw_". With
    --lookahead_steps they are those of the slow weights.
    """
    if state.looks_ahead:
        with state.averages_in_place():
            totals = evaluator.evaluate(stop_requested)
        return totals and totals.summary()
    raw = evaluator.evaluate(stop_requested)
    if raw is None or not state.averages:
        return raw and raw.summary()
    raw = raw.summary()
    with state.averages_in_place():
        averaged = evaluator.evaluate(stop_requested)
    return averaged and averaged.summary() | {f"raw_{name}": raw[name] for name in ("loss", "accuracy")}


def describe_network(checkpoint):
    """(class names, image shape) of the network in a checkpoint, two tuples. Raises UnusableError if it describes no run."""
    check_description(checkpoint)
    return tuple(checkpoint.description["class_names"]), tuple(checkpoint.description["image_shape"])


def restore_for_use(config, strategy, checkpoint):
    """Builds the network of a checkpoint with its evaluated weights, as a TrainState without optimizer slots or counters."""
    about = checkpoint.description
    pixels = PixelScaling.from_tensors(checkpoint.tensors("pixels/"), checkpoint.folder)
    state = create_state(config, strategy, len(about["class_names"]), about["image_shape"], pixels)
    assign(state.weights(), checkpoint.evaluated_weights(), checkpoint.folder)
    return state


def evaluate(config, workdir):
    """The mode `evaluate`: evaluates --split with the --checkpoint of a Workdir, prints and writes the result; returns 0."""
    with explained(config):
        return _evaluate(config, workdir)


def _evaluate(config, workdir):
    checkpoint = CheckpointStore(workdir.checkpoints).find(config.modes.checkpoint)
    class_names, image_shape = describe_network(checkpoint)
    refuse_other_experiment(config, checkpoint, FIXED_FOR_USE)
    strategy = create_strategy(config)
    source = open_source(config.data)
    for note in source.notes:
        print(note)
    if class_names != source.class_names:
        remedy = f"has {len(source.class_names)} classes that are not those of the checkpoint ({len(class_names)}: "
        remedy += f"{', '.join(class_names[:3])}, ...); give the data set that the run was trained on"
        raise SettingError("dataset", config.data.dataset, remedy)
    flag, split_name = ("split", config.modes.split) if config.modes.split else ("test_split", config.data.test_split)
    try:
        split = open_split(read_like(config.data, kind_before(checkpoint)), source, split_name, flag)
    finally:  # also if there is one bad example too many
        workdir.write_bad_examples(source.bad.lines())
    if tuple(split.image_shape) != image_shape:
        size = f"{image_shape[0]} x {image_shape[1]}"
        raise SettingError("image_size", config.data.image_size, f"the checkpoint's network takes {size}; give data of that size")
    state = restore_for_use(config, strategy, checkpoint)  # only now are its shapes known to be those of the data
    test_crops, batch_size = config.modes.test_crops, config.optimization.global_batch_size
    eval_step = make_eval_step(strategy, state, test_crops)
    evaluator = SplitEvaluator(strategy, eval_step, split, len(class_names), batch_size, test_crops=test_crops)
    totals = evaluator.evaluate()
    workdir.write_bad_examples(source.bad.lines())  # a stream's
    written = [evaluation_files.write(workdir, ".", evaluator, checkpoint.step, split_name, class_names, test_crops)]
    (workdir.path / "mistakes.png").unlink(missing_ok=True)  # only drawn if there are mistakes
    written += [workdir.write_file(f"{name}.png", png) for name, png in evaluation_files.draw(workdir.path).items()]
    print_evaluation(checkpoint, split_name, class_names, totals, test_crops)
    print(f"written: {', '.join(str(path) for path in written)}")
    return 0


def print_evaluation(checkpoint, split_name, class_names, totals, test_crops=1):
    """Prints the figures, the accuracy per class and, if it is not too large, the confusion matrix as a table."""
    figures = totals.summary()
    views = f", mean of {test_crops} views" if test_crops > 1 else ""
    print(f"{split_name}, {figures['examples']} examples, checkpoint {checkpoint.folder.name}{views}: "
          f"accuracy {percent(figures['accuracy'])}, top-5 {percent(figures['top_5_accuracy'])}, loss {number(figures['loss'])}")
    width = max(len(name) for name in class_names)
    show_matrix = len(class_names) <= MOST_CLASSES_IN_TABLE
    if show_matrix:
        print(f"\n{'true class':<{width}}  accuracy   predicted class, in the same order")
    for name, accuracy, row in zip(class_names, totals.accuracy_per_class(), totals.confusion, strict=True):
        counts = "".join(f"{count:>6}" for count in row) if show_matrix else ""
        print(f"{name:<{width}}  {percent(accuracy):>8} {counts}")
