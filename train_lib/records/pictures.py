"""Pictures of a run: the first layer's kernels, a batch after augmentation, the confusion matrix, the most confident mistakes.

Each is a PNG file in the workdir's folder `pictures` and an image in TensorBoard, under the step that it shows. Drawing changes
neither random state nor records, and a picture that cannot be written does not end a run.
"""

import dataclasses
import functools
import json
import re
import shutil

import keras
import numpy as np
import tensorflow as tf

from alexnet import names
from input_pipeline.common.batches import Shard
from train_lib.augment import augment
from train_lib.records import evaluation_files
from train_lib.steps import scale_pixels

FOLDER = "pictures"
CELL = 96  # pixels that an image of a batch is enlarged to, as far as it goes into them
LARGE_IMAGE = 64  # pixels; of larger ones fewer are shown
_NAME = re.compile(r"(kernels|batch|confusion_matrix|mistakes)-([0-9]{8,})\.png")  # others are somebody's own


def _harmless(draw):
    """A method that draws: only on the worker that writes, and with a line instead of an error: no picture is worth a run."""

    @functools.wraps(draw)
    def harmless(self, *arguments):
        if not self._run.workdir.is_ours:
            return
        try:
            if self._writer is None:
                self._open()
            draw(self, *arguments)
            self._writer.flush()
        except Exception as error:  # of the file system, of a JSON file cut off by a crash, of a library
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            self._log(f"{self._folder}: no picture at step {self._run.state.step} ({reason}); going on")

    return harmless


class Pictures:
    """Draws the pictures of one run; those of a workdir that is not ours to write go nowhere.

    On several workers the mistakes are those among the chief's share of the examples; all else is the whole run's.

    Args:
      run: an open Run, at the step where it starts or resumes; pictures beyond it are dropped, and TensorBoard is written anew
        from the rest.
      log: called with one line about a picture that cannot be written.
    """

    def __init__(self, run, log=print):
        self._run, self._log = run, log
        self._first_step = run.state.step
        self._folder = run.workdir.path / FOLDER
        self._writer = None

    @_harmless
    def draw_batch(self):
        """The first images of the batch that is trained on next, as the network sees them; once in a run."""
        if not any(self._folder.glob("batch-*.png")):
            images = next_images(self._run)
            sheet = tile(images, 8 if images.shape[1] <= LARGE_IMAGE else 4, CELL)
            self._add("batch", self._run.state.step, tf.io.encode_png(sheet).numpy())

    @_harmless
    def draw_evaluation(self, evaluator, is_best):
        """Draws the first layer's kernels. For the best evaluation so far, keeps what a SplitEvaluator found, if there is one."""
        kernels = first_kernels(self._run.state.model)
        if kernels is not None:
            config = self._run.config.network
            towers = names.parse_options(config.model, config.model_options).get("towers", 1)
            self._add("kernels", self._run.state.step, tf.io.encode_png(kernel_grid(kernels, towers)).numpy())
        if evaluator and is_best:
            self._note(evaluator, self._run.state.step, self._run.config.data.validation_split)

    @_harmless
    def draw_test(self, evaluator, best_step):
        """The confusion matrix and the most confident mistakes of the best checkpoint.

        Args:
          evaluator: SplitEvaluator that has just evaluated the test split; None: draw those of the validation split.
          best_step: of the checkpoint.
        """
        if evaluator:
            self._note(evaluator, best_step, self._run.config.data.test_split, self._run.config.modes.test_crops)
        if evaluation_files.is_in(self._folder):
            step = json.loads((self._folder / evaluation_files.EVALUATION).read_text())["step"]
            for name, png in evaluation_files.draw(self._folder).items():
                self._add(name, step, png)

    def _note(self, evaluator, step, split_name, test_crops=1):
        evaluation_files.write(self._run.workdir, FOLDER, evaluator, step, split_name, self._run.source.class_names, test_crops)

    def _open(self):
        self._folder.mkdir(exist_ok=True)
        for path in self._folder.iterdir():
            match = _NAME.fullmatch(path.name)
            is_note = path.name in (evaluation_files.EVALUATION, evaluation_files.MISTAKES)
            if (match and int(match[2]) > self._first_step) or (self._first_step == 0 and (match or is_note)):
                path.unlink()
        folder = self._run.workdir.path / "tensorboard" / FOLDER
        shutil.rmtree(folder, ignore_errors=True)
        writer = tf.summary.create_file_writer(str(folder))
        for path in sorted(self._folder.glob("*.png")):
            if match := _NAME.fullmatch(path.name):
                try:
                    _summarize(writer, match[1], int(match[2]), path.read_bytes())
                except tf.errors.InvalidArgumentError:  # a machine that lost its power may leave an empty file
                    path.unlink()
        self._writer = writer

    def _add(self, name, step, png):
        """Keeps a picture, the bytes of a PNG file; one that is drawn again replaces its file alone."""
        path = self._folder / f"{name}-{step:08d}.png"
        is_new = not path.exists()
        self._run.workdir.write_file(f"{FOLDER}/{path.name}", png)
        if is_new:
            _summarize(self._writer, name, step, png)


def _summarize(writer, name, step, png):
    with writer.as_default(step=step):
        tf.summary.image(name, tf.io.decode_png(png, channels=3)[tf.newaxis])


def next_images(run):
    """The first images of the batch that a Run trains on next, after all augmentation.

    At most 32, or 8 large ones. They go through the pipeline and the functions that training uses, as the share of one replica
    would: what happens to an example depends on its place in the batch alone. Of a stream, other examples take these places: to
    find out which it will be, its whole buffer would have to be filled once more.

    Returns:
      uint8 [n, height, width, 3]: the network's input, scaled back; what augmentation moved out of [0, 255] is cut off.
    """
    config, split, pixels, step = run.config, run.train_split.on_host, run.state.pixels, run.state.step
    size, most = config.optimization.global_batch_size, 32 if split.image_shape[0] <= LARGE_IMAGE else 8
    # Even where the batch is: mixup mixes pairs.
    shown = max(n for n in range(1, most + 1) if size % n == 0 and (n % 2 == 0 or size % 2 == 1))
    if hasattr(split, "shuffle_buffer"):
        split = dataclasses.replace(split, shuffle_buffer=shown)
    share = Shard(num_replicas=size // shown)
    batch = next(iter(split.training_batches(config.general.seed, step, size, config.data.augmentations, share)))
    images = scale_pixels(batch["image"], pixels, run.state.model.inputs[0].dtype)
    images, _ = augment(config, pixels, images, batch["label"], tf.constant(step, tf.int64), 0)
    return np.clip(np.rint(images.numpy() / pixels.scale + pixels.offset), 0, 255).astype(np.uint8)


def first_kernels(model):
    """The kernels of the first convolution over three channels, float [height, width, 3, kernels]; None where there is none."""
    kernels = (getattr(layer, "kernel", None) for layer in model.layers)
    found = (kernel for kernel in kernels if kernel is not None and len(kernel.shape) == 4 and kernel.shape[2] == 3)
    return next((keras.ops.convert_to_numpy(kernel) for kernel in found), None)


def kernel_grid(kernels, towers=1):
    """Kernels as small images in rows of 16, tower below tower: the paper's figure 3 for its 96 kernels in two towers.

    Each is scaled by its own largest weight; a weight of 0 is grey.

    Args:
      kernels: float [height, width, 3, n], a tower's one after the other's.
      towers: divides n.

    Returns:
      uint8 [height, width, 3].
    """
    kernels = np.nan_to_num(np.moveaxis(np.asarray(kernels, np.float64), -1, 0), posinf=0.0, neginf=0.0)
    largest = np.abs(kernels).max(axis=(1, 2, 3), keepdims=True)
    images = np.rint(127.5 + 127.5 * kernels / np.where(largest > 0, largest, 1)).astype(np.uint8)
    grids = [tile(tower, 16 if len(tower) >= 48 else 8, 44) for tower in np.split(images, towers)]
    between = np.full((12, grids[0].shape[1], 3), 255, np.uint8)
    return np.concatenate([piece for grid in grids for piece in (between, grid)][1:])


def tile(images, columns, cell, gap=4):
    """Images side by side in rows, each pixel enlarged to a square, on white.

    Args:
      images: uint8 [n, height, width, 3].
      columns: images in a row.
      cell: pixels that an image's width is enlarged to, as far as a whole number of times goes into them.
      gap: pixels between two images.

    Returns:
      uint8 [rows, columns, 3].
    """
    factor = max(1, cell // images.shape[2])
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    count, height, width, _ = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = np.full((rows, height + gap, columns, width + gap, 3), 255, np.uint8)
    for index, image in enumerate(images):
        sheet[index // columns, :height, index % columns, :width] = image
    return sheet.reshape(rows * (height + gap), columns * (width + gap), 3)[:-gap, :-gap]
