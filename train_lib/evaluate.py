"""Judges a split with a checkpoint: accuracy, top-5, loss, accuracy per class and confusion matrix."""

import numpy as np

from input_pipeline.batches import num_evaluation_steps
from input_pipeline.errors import UnusableError
from input_pipeline.sources import open_source
from input_pipeline.splits import open_split
from train_lib import checkpointing
from train_lib.failures import explained
from train_lib.metrics import SplitTotals
from train_lib.state import PixelScaling, assign, create_state
from train_lib.steps import make_eval_step
from train_lib.strategy import create_strategy, distribute
from train_lib.terminal import number, percent
from train_lib.workers import OneWorker

MOST_CLASSES_IN_TABLE = 20


class SplitJudge:
    """Judges a split as often as asked for, with the weights as they then are. Keeps one iterator alive.

    Args:
      strategy: tf.distribute strategy.
      eval_step: from `steps.make_eval_step`, with the same test_crops.
      split: ResidentSplit, DeviceSplit or StreamingSplit.
      num_classes: of the network.
      global_batch_size: images per step over all replicas.
      workers: those that judge a share each; every one gets the same totals.
      test_crops: views of an image, 1 or 10.
    """

    def __init__(self, strategy, eval_step, split, num_classes, global_batch_size, workers=None, test_crops=1):
        self._workers = workers or OneWorker()
        self._strategy = strategy
        self._eval_step = eval_step
        self._num_classes = num_classes
        self._steps = num_evaluation_steps(split.num_examples, global_batch_size)
        self._iterator = distribute(
            strategy, lambda shard: split.evaluation_batches(global_batch_size, shard, test_crops), split)

    def judge(self):
        """Goes through the split once, every example counted once; returns SplitTotals."""
        totals = SplitTotals(self._num_classes)
        for _ in range(self._steps):
            batch = next(self._iterator)
            logits = self._eval_step(batch)
            totals.add(*(self._host(values) for values in (logits, batch["label"], batch["weight"])))
        totals.add_up(self._workers.sum)
        return totals

    def _host(self, per_replica):
        return np.concatenate([value.numpy() for value in self._strategy.experimental_local_results(per_replica)])


def restore_for_use(config, strategy, checkpoint):
    """Builds the network of a checkpoint, gives it its weights, and returns a TrainState without a past."""
    about = checkpoint.description
    pixels = PixelScaling.from_tensors(checkpoint.tensors("pixels/"))
    state = create_state(config, strategy, len(about["class_names"]), about["image_shape"], pixels)
    assign(state.weights(), checkpoint.judged_weights(), checkpoint.folder)
    return state


def evaluate(config, workdir):
    """The mode `evaluate`: judges --split with --checkpoint of a Workdir, prints it and writes it down; returns 0."""
    with explained(config):
        return _evaluate(config, workdir)


def _evaluate(config, workdir):
    checkpoint = checkpointing.CheckpointStore(workdir.checkpoints).find(config.judge.checkpoint)
    strategy = create_strategy(config)
    source = open_source(config.data)
    class_names = tuple(checkpoint.description["class_names"])
    if class_names != source.class_names:
        raise UnusableError(
            f"--dataset={config.data.dataset}: has {len(source.class_names)} classes that are not those of the checkpoint "
            f"({len(class_names)}: {', '.join(class_names[:3])}, ...); give the data set that the run was trained on"
        )
    state = restore_for_use(config, strategy, checkpoint)
    flag, split_name = ("split", config.judge.split) if config.judge.split else ("test_split", config.data.test_split)
    split = open_split(config.data, source, split_name, flag)
    if tuple(split.image_shape) != tuple(checkpoint.description["image_shape"]):
        shape = checkpoint.description["image_shape"]
        raise UnusableError(f"--image_size={config.data.image_size}: the checkpoint's network takes {shape[0]} x {shape[1]}")
    workdir.write_bad_examples(source.bad.lines())
    test_crops, batch_size = config.judge.test_crops, config.optimization.global_batch_size
    eval_step = make_eval_step(strategy, state, test_crops)
    totals = SplitJudge(strategy, eval_step, split, len(class_names), batch_size, test_crops=test_crops).judge()
    workdir.write_bad_examples(source.bad.lines())  # a stream's
    written = write_evaluation(workdir, checkpoint, split_name, class_names, totals, test_crops)
    print_evaluation(checkpoint, split_name, class_names, totals, test_crops)
    print(f"written: {', '.join(str(path) for path in written)}")
    return 0


def write_evaluation(workdir, checkpoint, split_name, class_names, totals, test_crops=1):
    """Writes evaluation.json and confusion_matrix.png; returns their paths."""
    report = {
        "checkpoint": checkpoint.folder.name,
        "step": checkpoint.step,
        "split": split_name,
        "test_crops": test_crops,
        **totals.summary(),
        "accuracy_per_class": dict(zip(class_names, totals.accuracy_per_class(), strict=True)),
        "class_names": list(class_names),
        "confusion_matrix": totals.confusion.tolist(),
    }
    picture = workdir.path / "confusion_matrix.png"
    draw_confusion_matrix(picture, class_names, totals.confusion, f"{split_name}, step {checkpoint.step}")
    return workdir.write_json("evaluation.json", report), picture


def print_evaluation(checkpoint, split_name, class_names, totals, test_crops=1):
    """Prints the figures, the accuracy per class and, where it is readable, the confusion matrix as a table."""
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


def draw_confusion_matrix(path, class_names, confusion, title):
    """Draws a confusion matrix, each row in per cent of its true class, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    share = 100 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    size = min(6 + 0.25 * len(class_names), 20)
    figure, axes = plt.subplots(figsize=(size, size * 0.9), layout="constrained")
    image = axes.imshow(share, vmin=0, vmax=100, cmap="Blues")
    axes.set(title=title, xlabel="predicted class", ylabel="true class")
    if len(class_names) <= 50:
        ticks = range(len(class_names))
        axes.set_xticks(ticks, class_names, rotation=45, ha="right")
        axes.set_yticks(ticks, class_names)
    if len(class_names) <= MOST_CLASSES_IN_TABLE:
        for (row, column), value in np.ndenumerate(share):
            if value >= 0.5:
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", color="white" if value > 50 else "black")
    figure.colorbar(image, ax=axes, label="% of the true class", shrink=0.8)
    figure.savefig(path, dpi=120)
    plt.close(figure)
