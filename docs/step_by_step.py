"""One batch, one gradient and one step by hand: the pieces of the loop, on the embedded data set, without any flag.

    python docs/step_by_step.py [FOLDER]

Prints what each piece returns, and draws it into FOLDER/step_by_step.png (default: the current folder). You can paste each part
between two comments into a notebook. `train_lib/train.py` puts the same pieces together.
"""

import os
import pathlib
import sys

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hides TensorFlow's messages about this machine
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # not needed once the project is installed

import matplotlib  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from input_pipeline import sources  # noqa: E402
from input_pipeline.splits import resident
from train_lib import config, state, steps  # noqa: E402
from train_lib.inner_loop import make_train_loop  # noqa: E402

matplotlib.use("Agg")  # draws into a file; leave this line out in a notebook
import matplotlib.pyplot as plt  # noqa: E402

NUM_EXAMPLES, BATCH, RATE, MORE_STEPS = 512, 32, 0.02, 20


def main(folder=".", data_dir=None):
    """Goes through one step. `data_dir` is TFDS's folder; None: TFDS's default."""
    # ---- Settings. Each has a default; the values given here are those that the flags of the same names would take.
    settings = config.from_values({
        "data_dir": data_dir, "model": "alexnet_mini", "model_options": "width=0.5,dense_units=64,dense7_relu=true",
        "global_batch_size": BATCH, "steps_per_loop": MORE_STEPS, "pixels": "minus_one_one", "augment": "crop,flip",
    })

    # ---- Data. The embedded data set draws its images when it is first opened. They stay uint8 until they are on the device.
    source = sources.open_source(settings.data)
    split = resident.load(source, f"train[:{NUM_EXAMPLES}]", NUM_EXAMPLES, (32, 32))
    print(f"{split.num_examples} images {split.image_shape} of {', '.join(source.class_names)}")

    # ---- One batch. It is a function of (seed, step): step 0 always has the same batch, and first_step=1 starts with the next.
    batches = split.training_batches(0, 0, BATCH, settings.data.augmentations)
    batch = next(iter(batches))
    for name, values in batch.items():
        print(f"{name}: {values.dtype.name} {list(values.shape)}")

    # ---- Everything that training changes: weights and the optimizer's slots. The default strategy is a single device.
    strategy = tf.distribute.get_strategy()
    pixels = state.pixel_scaling(settings.data.pixels, split)
    run = state.create_state(settings, strategy, len(source.class_names), split.image_shape, pixels)
    weights = run.model.trainable_variables
    print(f"{run.model.name}: {run.model.count_params():,} parameters in {len(weights)} weights")

    # ---- The forward pass: pixels scaled to [-1, 1], logits, and the cross-entropy of each example.
    images = steps.scale_pixels(batch["image"], pixels, tf.float32)
    logits = run.model(images)
    losses = steps.cross_entropy(batch["label"], logits)
    print(f"logits {list(logits.shape)}; loss of each example {losses.numpy().min():.3f} to {losses.numpy().max():.3f}, "
          f"that of guessing is ln 10 = {np.log(10):.3f}")
    print(f"loss by hand {losses.numpy().mean():.6f}")

    # ---- One gradient, which changes nothing yet. The loss is a sum over examples, divided by the global batch size.
    gradients, sums = steps.forward_and_backward(run, settings, batch, step=tf.constant(0, tf.int64), first_example=0)
    norms = {weight.path: float(tf.norm(gradient)) for weight, gradient in zip(weights, gradients, strict=True)}
    print(f"loss of the tape {sums['loss'].numpy() / BATCH:.6f}, {int(sums['accuracy'])} of {BATCH} right")
    for path, norm in norms.items():
        print(f"  {path:<16} norm of the gradient {norm:.4f}")

    # ---- Check the gradient: along it, the slope of the loss must be its squared norm. Measure the slope by two small steps.
    before = [weight.numpy() for weight in weights]
    squared_norm = sum(norm**2 for norm in norms.values())

    def loss_at(distance):
        for weight, value, gradient in zip(weights, before, gradients, strict=True):
            weight.assign(value + distance * gradient)
        return float(tf.reduce_mean(steps.cross_entropy(batch["label"], run.model(images))))

    slope = (loss_at(1e-4) - loss_at(-1e-4)) / 2e-4
    loss_at(0.0)
    print(f"slope along the gradient {slope:.4f}, squared norm {squared_norm:.4f}")

    # ---- One step: the same gradient, the check for infinity, the update. SGD's momentum starts at 0: w - rate * gradient.
    report = steps.train_step(strategy, run, settings, batch, step=tf.constant(0, tf.int64), learning_rate=RATE)
    print("report " + ", ".join(f"{name} {report[name].numpy():.6f}" for name in steps.METRICS))
    wrong = max(float(np.abs(weight.numpy() - (value - RATE * gradient.numpy())).max())
                for weight, value, gradient in zip(weights, before, gradients, strict=True))
    print(f"largest difference from w - rate * gradient {wrong:.1e}")

    # ---- More steps in one call of the compiled loop. A training run does `--steps_per_loop` of them per call.
    loop = make_train_loop(strategy, run, settings)
    iterator = iter(split.training_batches(0, 1, BATCH, settings.data.augmentations))  # from step 1 on
    rates = tf.constant(np.full(MORE_STEPS, RATE))
    first, count, skipped = tf.constant(1, tf.int64), tf.constant(MORE_STEPS), tf.constant(0, tf.int64)
    done, _, reports = loop(iterator, first, count, rates, skipped)
    curve = [float(report["loss"]), *reports["loss"].numpy().tolist()]
    print(f"{int(done)} more steps: loss {curve[0]:.3f} -> {np.mean(curve[-5:]):.3f}, the mean of the last five")

    # ---- The picture: the batch as the network sees it, the norm of each weight's gradient, and the losses.
    figure = plt.figure(figsize=(12, 8), layout="constrained")
    upper, lower = figure.subfigures(2, 1)
    for index, axes in enumerate(upper.subplots(2, 8).flat):
        axes.imshow(batch["image"][index])
        axes.set_title(source.class_names[int(batch["label"][index])], fontsize=8)
        axes.axis("off")
    bars, losses_axes = lower.subplots(1, 2)
    bars.barh(list(norms), list(norms.values()))
    bars.invert_yaxis()
    bars.set_xlabel("norm of the first gradient")
    losses_axes.plot(curve, marker=".")
    losses_axes.set(xlabel="step", ylabel="loss of the batch")
    path = pathlib.Path(folder) / "step_by_step.png"
    figure.savefig(path, dpi=100)
    plt.close(figure)
    print(f"drawn into {path}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
