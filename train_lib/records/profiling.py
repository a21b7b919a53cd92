"""--profile_steps: a TensorBoard trace of some steps of a run."""

import tensorflow as tf


class Profile:
    """Traces the steps from START up to STOP of a run. Call `close` however the loop ends.

    Args:
      steps: (START, STOP) as `DeviceConfig.profile_range` gives it, or None.
      folder: of the trace; TensorBoard's plugin looks for plugins/profile in it.
      first_step, last_step: where the run starts or resumes, and where it ends.
      log: called with a line about what is traced, or why it is not.
    """

    def __init__(self, steps, folder, first_step, last_step, log=print):
        self._folder, self._log = str(folder), log
        self._start, self._stop = steps or (0, 0)
        self._begun = self._on = False
        if steps:
            self._clip(first_step, last_step)

    def _clip(self, first_step, last_step):
        asked = f"--profile_steps={self._start}:{self._stop}"
        if self._start >= last_step:
            self._log(f"{asked}: the run ends at step {last_step}; nothing is profiled")
        elif self._stop <= first_step:
            self._log(f"{asked}: the run goes on at step {first_step}; nothing is profiled")
        elif self._start < first_step or self._stop > last_step:
            first, stop = max(self._start, first_step), min(self._stop, last_step)
            self._log(f"{asked}: the run goes from step {first_step} to {last_step}; profiled is {first}:{stop}")

    def begin_before(self, step):
        """To be called before a stretch of steps that begins at `step`."""
        if self._begun or not self._start <= step < self._stop:
            return
        self._begun = True
        try:
            tf.profiler.experimental.start(self._folder)
            self._on = True
        except tf.errors.OpError as error:
            self._log(f"no profile: {_first_line(error)}; going on")

    def end_after(self, step):
        """To be called after a stretch of steps that ended with `step` steps done."""
        if step >= self._stop:
            self.close()

    def close(self):
        """Ends the trace if it is still on, however the loop has ended."""
        if not self._on:
            return
        self._on = False
        try:
            tf.profiler.experimental.stop()
            self._log(f"profile of steps {self._start}:{self._stop} in {self._folder}/plugins/profile")
        except (OSError, tf.errors.OpError) as error:  # a full disk must not end the run
            self._log(f"no profile: {_first_line(error)}; going on")


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
