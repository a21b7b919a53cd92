"""docs/step_by_step.py: what it prints is what the pieces compute."""

import re

import numpy as np
import pytest
import step_by_step
from PIL import Image

import alexnet
from input_pipeline import sources
from input_pipeline.config import DataConfig
from input_pipeline.splits import resident


@pytest.fixture(scope="module")
def printed(tmp_path_factory, data_dir):
    """Its output and its picture, from a run in this process."""
    import contextlib
    import io

    folder = tmp_path_factory.mktemp("pictures")
    with contextlib.redirect_stdout(io.StringIO()) as output:
        step_by_step.main(folder, str(data_dir))
    return output.getvalue(), folder / "step_by_step.png"


def number(pattern, text):
    return float(re.search(pattern + r" (-?[\d.e+-]+)", text)[1].rstrip("."))


def test_its_numbers_agree(printed, data_dir):
    """The loss by hand, of the tape and of the step; the gradient and a difference quotient; the update and its formula."""
    text, _ = printed
    by_hand = number("loss by hand", text)
    assert number("loss of the tape", text) == pytest.approx(by_hand, abs=2e-6)
    assert number("report loss", text) == pytest.approx(by_hand, abs=2e-6)
    assert number("slope along the gradient", text) == pytest.approx(number("squared norm", text), rel=0.01)
    assert number("report .*gradient_norm", text) ** 2 == pytest.approx(number("squared norm", text), rel=1e-3)
    assert number("largest difference from w - rate \\* gradient", text) < 1e-6
    first, last = re.search(r"20 more steps: loss ([\d.]+) -> ([\d.]+)", text).groups()
    assert float(first) == pytest.approx(by_hand, abs=1e-3) and float(last) < float(first)
    # And the loss once more, by NumPy on the logits of a network of its own.
    source = sources.open_source(DataConfig(data_dir=str(data_dir)))
    split = resident.load(source, "train[:512]", 512, (32, 32))
    batch = next(iter(split.training_batches(0, 0, 32, ("crop", "flip"))))
    model = alexnet.build("alexnet_mini", 10, (32, 32, 3), options="width=0.5,dense_units=64,dense7_relu=true")
    logits = model(batch["image"].numpy() / np.float32(127.5) - 1).numpy().astype(np.float64)
    right = logits[np.arange(32), batch["label"]]
    assert by_hand == pytest.approx((np.log(np.exp(logits).sum(axis=1)) - right).mean(), abs=1e-5)


def test_it_draws(printed):
    """Not one colour: an empty figure would be white."""
    image = np.asarray(Image.open(printed[1]).convert("RGB"))
    assert image.shape == (800, 1200, 3)
    for part in (image[:400], image[400:, :600], image[400:, 600:]):
        assert (part.min(axis=2) < 250).mean() > 0.01
