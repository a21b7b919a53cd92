"""What a run shows: a progress bar on a terminal, plain lines elsewhere, one line per evaluation in both."""

import contextlib
import os
import shlex
import sys

from tqdm import tqdm

from train_lib.records.divergence import in_words

SECONDS_BETWEEN_LINES = 15.0


class Terminal:
    """Shows the progress of training.

    Args:
      total_steps: where the bar ends.
      first_step: where it starts.
      clock: seconds, monotonic.
      is_terminal: whether to draw a bar; None: ask stderr.
    """

    def __init__(self, total_steps, first_step, clock, is_terminal=None):
        is_terminal = sys.stderr.isatty() if is_terminal is None else is_terminal
        self._total = total_steps
        self._clock = clock
        self._last_line = clock()
        self._bar = tqdm(total=total_steps, initial=first_step, unit="step", dynamic_ncols=True) if is_terminal else None

    def line(self, text):
        """Prints a line above the bar."""
        say(text)

    def progress(self, step, values, images_per_second):
        """Shows where training is; `values` has loss, accuracy and learning_rate."""
        shown = f"loss {number(values['loss'])}, accuracy {percent(values['accuracy'])}, lr {values['learning_rate']:.3g}"
        shown += f", {images_per_second:,.0f} images/s"
        if self._bar is not None:
            self._bar.set_postfix_str(shown, refresh=False)
            self._bar.update(step - self._bar.n)
        elif self._clock() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = self._clock()
            say(f"step {step}/{self._total}: {shown}")

    def close(self):
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


@contextlib.contextmanager
def quiet_unless(is_chief):
    """Context manager that drops what is printed on a worker other than the chief; errors, on stderr, still come through."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(sys.stdout if is_chief else nowhere):
        yield


def say(text):
    """Prints a line, above the bar where there is one."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


class Unfailing:
    """A text stream that goes on where `stream` fails: a full disk behind it, or a reader that has left, ends no run."""

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        """Writes what can be written; what cannot is tried again with the next text."""
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self):
        """Flushes what can be flushed."""
        with contextlib.suppress(OSError):
            self._stream.flush()


def number(value):
    """A loss, short; a dash where there is none."""
    return "-" if value is None else f"{value:.4f}"


def percent(value):
    """An accuracy in per cent; a dash where there is none."""
    return "-" if value is None else f"{100 * value:.2f} %"


def evaluation_line(epoch, epochs, step, train, validation, is_best):
    """The one line of an epoch; `train` is the newest train record's values, None before the first."""
    parts = [f"epoch {epoch:.3g}/{epochs:g}, step {step}"]
    if train is not None:
        parts.append(f"train loss {number(train['loss'])}, accuracy {percent(train['accuracy'])}")
    if validation is not None:
        parts.append(f"validation loss {number(validation['loss'])}, accuracy {percent(validation['accuracy'])}")
    return " | ".join(parts) + (" (best)" if is_best and validation is not None else "")


def parameter_table(model):
    """The layers of a network, their output shapes and parameters, as text; without layers that change neither."""
    rows = [("layer", "output", "parameters")]
    previous = None
    for layer in model.layers:
        shape = tuple(layer.output.shape[1:])
        parameters = layer.count_params()
        if parameters or shape != previous:
            rows.append((layer.name, " x ".join(map(str, shape)), f"{parameters:,}" if parameters else ""))
        previous = shape
    rows.append((model.name, "", f"{model.count_params():,}"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(f"{name:<{widths[0]}}  {shape:<{widths[1]}}  {count:>{widths[2]}}".rstrip() for name, shape, count in rows)


def closing_lines(path, result):
    """What a user reads at the end of a run: what came out, where it is, what to type next."""
    command = shlex.join(["python", "main.py", f"--flagfile={path / 'run.flags'}", f"--workdir={path}"])
    if result["status"] == "diverged":
        return [f"error: {in_words(result['diverged'])}; {path / 'checkpoints'} holds the last finite weights; to go on with the "
                f"next batch: {command}; if it diverges again, give a lower --learning_rate, or --clip_global_norm"]
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
        f"best checkpoint  {path / 'checkpoints' / (path / 'checkpoints' / 'best').read_text().strip()}",
        f"TensorBoard      tensorboard --logdir={path / 'tensorboard'}",
        f"next             python main.py --mode=evaluate --workdir={path}",
    ]
