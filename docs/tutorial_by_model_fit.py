"""The tutorial's listing for CIFAR-10 with Keras's `model.fit`, to compare --preset=tutorial with.

    python docs/tutorial_by_model_fit.py FOLDER [--data_dir=DIR] [--seed=0] [--epochs=3]

Writes `metrics.jsonl` (validation records in the format of training) and `result.json` into FOLDER. It does not use this
project: layers, pipeline, loss and loop are those of the listing. The only change is for Keras 3, which needs one-hot labels with
two dimensions.
"""

import argparse
import json
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402
import tensorflow_datasets as tfds  # noqa: E402

BATCH_SIZE, SHUFFLED, LEARNING_RATE = 128, 10_000, 0.001


def network():
    """The reduced network (24-64-128-64-64), with the padding and the Flatten layer that it needs for 32x32 images."""
    def conv(filters, size):
        return keras.layers.Conv2D(filters, size, padding="same", activation="relu", kernel_initializer="he_uniform")

    def pool():
        return keras.layers.MaxPooling2D(2)

    def dense(units, activation=None):
        return keras.layers.Dense(units, activation, kernel_initializer="he_uniform")

    return keras.Sequential([
        keras.Input((32, 32, 3)),
        conv(24, 5), pool(), conv(64, 3), pool(), conv(128, 3), conv(64, 3), pool(), conv(64, 3), pool(),
        keras.layers.Flatten(), dense(4096, "relu"), dense(4096), dense(10, "softmax"),
    ])


def pixels_and_labels(split, data_dir):
    """All images of a split, as float32 in [0, 1], and their one-hot labels."""
    images, labels = tfds.as_numpy(tfds.load("cifar10", split=split, batch_size=-1, as_supervised=True, data_dir=data_dir))
    return images.astype("float32") / 255, keras.utils.to_categorical(labels, 10)


def main():
    """Trains and writes the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--data_dir", default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args()
    keras.utils.set_random_seed(given.seed)
    train = tf.data.Dataset.from_tensor_slices(pixels_and_labels("train", given.data_dir)).shuffle(SHUFFLED).batch(BATCH_SIZE)
    test = tf.data.Dataset.from_tensor_slices(pixels_and_labels("test", given.data_dir)).batch(BATCH_SIZE)
    model = network()
    model.compile(keras.optimizers.SGD(LEARNING_RATE), "categorical_crossentropy", metrics=["accuracy"])
    start = time.monotonic()
    history = model.fit(train, validation_data=test, epochs=given.epochs, verbose=2).history
    seconds = time.monotonic() - start
    given.folder.mkdir(parents=True, exist_ok=True)
    steps = len(train)
    records = [
        {"kind": "validation", "step": (epoch + 1) * steps, "epoch": epoch + 1.0, "loss": loss, "accuracy": accuracy}
        for epoch, (loss, accuracy) in enumerate(zip(history["val_loss"], history["val_accuracy"], strict=True))]
    (given.folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    best = max(records, key=lambda record: record["accuracy"])
    result = {
        "status": "completed", "steps": given.epochs * steps, "epochs": float(given.epochs), "best_step": best["step"],
        "best_validation_accuracy": best["accuracy"], "test_accuracy": None, "seconds": seconds,
        "images_per_second": given.epochs * 50_000 / seconds}
    (given.folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    print(result)


if __name__ == "__main__":
    main()
