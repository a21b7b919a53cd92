"""What a run prints: a progress bar on a terminal, plain lines elsewhere, one line per evaluation in both. No TensorFlow."""

import contextlib
import os
import sys

from tqdm import tqdm

from train_lib.cli.commands import main_command, python_command
from train_lib.hooks import Hook

SECONDS_BETWEEN_LINES = 15.0
NAMED_EXAMPLES = 8  # in the line about a run that diverged


class ProgressBar(Hook):
    """A progress bar on a terminal, plain lines elsewhere, and one line per evaluation in both.

    `clock` returns seconds, monotonic. With is_terminal=None, stderr decides. Workers other than the chief draw no bar.
    """

    def __init__(self, run, clock, is_terminal=None):
        self._total, self._clock, self._last_line, self._bar = run.plan.last_step, clock, clock(), None
        self._train = None  # the newest train record
        if run.workers.is_chief and (sys.stderr.isatty() if is_terminal is None else is_terminal):
            self._bar = tqdm(total=self._total, initial=run.state.step, unit="step", dynamic_ncols=True)

    def after_steps(self, run, report):
        step, values = run.state.step, run.state.record_values()
        shown = f"loss {number(values['loss'])}, accuracy {percent(values['accuracy'])}, lr {report.learning_rates[-1]:.3g}"
        shown += f", {report.images_per_second:,.0f} images/s"
        if self._bar is not None:
            self._bar.set_postfix_str(shown, refresh=False)
            self._bar.update(step - self._bar.n)
        elif self._clock() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = self._clock()
            say(f"step {step}/{self._total}: {shown}")

    def on_record(self, run, record):
        if record["kind"] == "train":
            self._train = record

    def after_evaluation(self, run, evaluation):
        if evaluation.kind == "validation":
            step, train = run.state.step, self._train or run.state.record_values()
            epoch, epochs = run.plan.epoch(step), run.config.schedule.epochs
            say(evaluation_line(epoch, epochs, step, train, evaluation.values, evaluation.is_best))

    def on_stop(self, run):
        if self._bar is not None:
            self._bar.close()


def say(text):
    """Prints a line on stdout, above the bar if there is one."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


@contextlib.contextmanager
def quiet_unless(is_chief):
    """Context manager that drops what workers other than the chief print on stdout. Errors, on stderr, still appear."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(sys.stdout if is_chief else nowhere):
        yield


def number(value):
    """A loss with four decimals, or a dash for None."""
    return "-" if value is None else f"{value:.4f}"


def percent(value):
    """An accuracy in per cent, or a dash for None."""
    return "-" if value is None else f"{100 * value:.2f} %"


def evaluation_line(epoch, epochs, step, train, validation, is_best):
    """The line about an evaluation; `train` has the values of the newest train record, or is None before the first."""
    parts = [f"epoch {epoch:.3g}/{epochs:g}, step {step}"]
    for split, values in (("train", train), ("validation", validation)):
        if values is not None:
            parts.append(f"{split} loss {number(values['loss'])}, accuracy {percent(values['accuracy'])}")
    return " | ".join(parts) + (" (best)" if is_best and validation is not None else "")


def parameter_table(model):
    """A network as text: the output shape and the parameters of every layer that changes the shape or has parameters."""
    rows, previous = [("layer", "output", "parameters")], None
    for layer in model.layers:
        shape, parameters = tuple(layer.output.shape[1:]), layer.count_params()
        if parameters or shape != previous:
            rows.append((layer.name, " x ".join(map(str, shape)), f"{parameters:,}" if parameters else ""))
        previous = shape
    rows.append((model.name, "", f"{model.count_params():,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(f"{name:<{widths[0]}}  {shape:<{widths[1]}}  {count:>{widths[2]}}".rstrip() for name, shape, count in rows)


def closing_lines(path, result):
    """The lines that a run prints at its end, a list: the content of result.json, where everything is, and what to type next."""
    path = path.absolute()
    checkpoints = path / "checkpoints"
    command = main_command(f"--flagfile={path / 'run.flags'}", f"--workdir={path}")
    if result["status"] == "diverged":
        return [f"error: {divergence_in_words(result['diverged'])}; {checkpoints} holds the last finite weights; to go on with "
                f"the next batch: {command}; if it diverges again, give a lower --learning_rate, or --clip_global_norm"]
    if result["status"] == "preempted":
        return [f"stopped at step {result['steps']}; to go on: {command}"]
    lines = [f"{result['status'].replace('_', ' ')} after {result['steps']} steps, {result['epochs']:.4g} epochs, "
             f"{result['seconds']:.0f} s, {result['images_per_second'] or 0:,.0f} images/s"]
    if result["best_validation_accuracy"] is not None:
        lines.append(f"best validation accuracy {percent(result['best_validation_accuracy'])}, at step {result['best_step']}")
    if result["test_accuracy"] is not None:
        lines.append(f"test accuracy of the best checkpoint {percent(result['test_accuracy'])}")
    return lines + [
        f"run              {path}",
        f"best checkpoint  {checkpoints / (checkpoints / 'best').read_text().strip()}",
        "TensorBoard      " + python_command("-m", "tensorboard.main", f"--logdir={path / 'tensorboard'}"),
        "next             " + main_command("--mode=evaluate", f"--workdir={path}"),
    ]


def divergence_in_words(about):
    """The update that ended a run, as a part of a line; `about` is what `run_log.describe_divergence` returned."""
    what = next((name for name in ("loss", "gradient_norm") if about[name] is None), "update").replace("_", " ")
    skipped = about["skipped_in_a_row"]
    if "positions" in about:
        stretches = (f"{first} to {last} of epoch {epoch}" for epoch, first, last in about["positions"])
        batch = f"positions {' and '.join(stretches)} in the shuffled order of {about['split']}"
    else:
        examples = about["examples"]
        more = f" and {len(examples) - NAMED_EXAMPLES} more, all listed in result.json," if len(examples) > NAMED_EXAMPLES else ""
        batch = f"examples {', '.join(map(str, examples[:NAMED_EXAMPLES]))}{more} of {about['split']}"
    row = f", update {skipped} in a row" if skipped > 1 else ""
    return f"the {what} is not finite at step {about['step']}{row}, {batch}"
