"""--profile_steps: a TensorBoard trace of some steps of a run."""

import tensorflow as tf

from input_pipeline.common.errors import one_line_of


class Profile:
    """Traces the steps [START, STOP) of a run. A trace that cannot be written does not end the run.

    Args:
      steps: (START, STOP) as returned by `DeviceConfig.profile_range`, or None.
      folder: the folder of the trace. TensorBoard's plugin looks for plugins/profile in it.
      first_step, last_step: where the run starts or resumes, and where it ends.
      log: called with a line about what is traced, or why it is not.
    """

    def __init__(self, steps, folder, first_step, last_step, log=print):
        self._folder, self._log = str(folder), log
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

    def begin_before(self, step):
        """Call this before the steps from `step` on."""
        if self._has_begun or not self._start <= step < self._stop:
            return
        self._has_begun = True
        try:
            tf.profiler.experimental.start(self._folder)
            self._is_on = True
        except tf.errors.OpError as error:
            self._log(f"no profile: {one_line_of(error)}; going on")

    def end_after(self, step):
        """Call this once `step` steps are done."""
        if step >= self._stop:
            self.close()

    def close(self):
        """Ends a trace that is still being recorded. Call this however the loop ends."""
        if not self._is_on:
            return
        self._is_on = False
        try:
            tf.profiler.experimental.stop()
            self._log(f"profile of steps {self._start}:{self._stop} in {self._folder}/plugins/profile")
        except (OSError, tf.errors.OpError) as error:
            self._log(f"no profile: {one_line_of(error)}; going on")
