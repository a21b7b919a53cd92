"""--profile_steps: a TensorBoard trace of some steps of a run."""

import os

import tensorflow as tf

from input_pipeline.common.errors import one_line_of
from train_lib.hooks import Hook
from train_lib.records.terminal import say


class Profile(Hook):
    """Traces the steps of --profile_steps on the chief. A trace that cannot be written does not end the run.

    `log` is called with a line about what is traced, or why it is not.
    """

    def __init__(self, run, log=say):
        self._folder, self._log = run.workdir.path / "tensorboard", log
        steps = run.config.device.profile_range() if run.workers.is_chief else None
        first_step, last_step = run.state.step, run.plan.last_step
        self._start, self._stop = steps or (0, 0)
        self._has_begun = self._is_on = False
        flag = f"--profile_steps={self._start}:{self._stop}"
        if steps and self._start >= last_step:
            log(f"{flag}: the run ends at step {last_step}; nothing is profiled")
        elif steps and self._stop <= first_step:
            log(f"{flag}: the run goes on at step {first_step}; nothing is profiled")
        elif steps and (self._start < first_step or self._stop > last_step):
            first, stop = max(self._start, first_step), min(self._stop, last_step)
            log(f"{flag}: the run goes from step {first_step} to {last_step}; the profile covers {first}:{stop}")

    def before_steps(self, run):
        if self._has_begun or not self._start <= run.state.step < self._stop:
            return
        self._has_begun = True
        try:
            tf.profiler.experimental.start(os.fsencode(self._folder))
            self._is_on = True
        except tf.errors.OpError as error:
            self._log(f"no profile: {one_line_of(error)}; going on")

    def after_steps(self, run, report):
        if run.state.step >= self._stop:
            self.on_stop(run)

    def on_stop(self, run):
        if not self._is_on:
            return
        self._is_on = False
        try:
            tf.profiler.experimental.stop()
            self._log(f"profile of steps {self._start}:{self._stop} in {self._folder}/plugins/profile")
        except (OSError, tf.errors.OpError) as error:
            self._log(f"no profile: {one_line_of(error)}; going on")
