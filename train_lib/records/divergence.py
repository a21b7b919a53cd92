"""The update that ended a run: which step it was, what was not finite, which examples were in its batch. Knows no TensorFlow."""

import math

NAMED_IN_A_LINE = 8  # examples


def describe(run, loss, gradient_norm):
    """What result.json says of a Run that has diverged, of the last step done; steps are counted from 0.

    Returns:
      "step"; "skipped_in_a_row", this one included; "loss" and "gradient_norm", None where they are not finite; "split"; what
      the split's `locate_batch` says of the batch.
    """
    step, batch_size = run.state.step - 1, run.config.optimization.global_batch_size
    return {
        "step": step,
        "skipped_in_a_row": run.state.skipped_in_a_row,
        "loss": loss if math.isfinite(loss) else None,
        "gradient_norm": gradient_norm if math.isfinite(gradient_norm) else None,
        "split": run.config.data.train_split,
        **run.train_split.locate_batch(run.config.general.seed, step, batch_size),
    }


def in_words(about):
    """`describe`'s result on part of a line."""
    what = next((name for name in ("loss", "gradient_norm") if about[name] is None), "update")
    many = about["skipped_in_a_row"]
    row = f", update {many} in a row" if many > 1 else ""
    return f"the {what.replace('_', ' ')} is not finite at step {about['step']}{row}, {_batch(about)}"


def _batch(about):
    if "positions" in about:
        stretches = (f"{first} to {last} of epoch {epoch}" for epoch, first, last in about["positions"])
        return f"positions {' and '.join(stretches)} in the shuffled order of {about['split']}"
    named, count = about["examples"][:NAMED_IN_A_LINE], len(about["examples"])
    more = f" and {count - len(named)} more, all listed in result.json," if count > len(named) else ""
    return f"examples {', '.join(map(str, named))}{more} of {about['split']}"
