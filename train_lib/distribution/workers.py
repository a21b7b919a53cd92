"""Several workers as one run: they find each other, agree on values, and end together when one is lost. No TensorFlow here.

TensorFlow notices a lost worker only inside a reduction. It waits for minutes for one that never comes, and does not tell those
that wait elsewhere: for data, for the chief's checkpoint, in an evaluation. The heartbeat here replaces TensorFlow's own (see
`train_lib.distribution.strategy`).
"""

import contextlib
import secrets
import threading
import time

from input_pipeline.common.errors import LostWorkerError, SettingError, UnusableError, one_line_of
from train_lib import config as config_lib
from train_lib.cli.signals import end_process
from train_lib.distribution import rendezvous

BEAT_SECONDS = 2.0
# Longer than any pause of a healthy process that we saw (3 s, tracing VGG16 on a busy core), and far below two minutes.
SILENCE_SECONDS = 20.0
# If all workers raise the same error, each has this long to end with its own before it ends with another worker's.
GRACE_SECONDS = 3.0
# For a shared file system to show a new file; NFS looks again after 3 s at the latest.
APPEAR_SECONDS = 10.0
PROBE = ".workers"
OF_THIS_MACHINE = ("data_dir", "workdir")  # machines may mount one file system at different places


class OneWorker:
    """A run on one machine: the methods of `Workers`, done alone."""

    cluster = None
    is_chief = True
    is_alone = True

    def gather(self, value):
        """Returns the JSON values that the workers pass, as a list in the order of their ranks. All workers get the same list."""
        return [value]

    def sum(self, numbers):
        """Returns the sums over all workers of a list of numbers, which has the same length on all."""
        return numbers

    def from_chief(self, function):
        """Returns what `function` returns on the chief, a JSON value. The other workers do not call it."""
        return self.gather(function() if self.is_chief else None)[0]

    def chief_first(self, function):
        """Calls `function` on every worker, first on the chief and then on the other workers; returns what it returned here."""
        if self.is_chief:
            result = function()
        self.gather(None)
        return result if self.is_chief else function()

    def explain(self, error):
        """If a lost worker caused an error of TensorFlow, ends with the line that names the worker."""


class Workers(OneWorker):
    """This process among the workers of a Cluster. `links` are those of `rendezvous.connect`."""

    is_alone = False

    def __init__(self, cluster, links):
        self.cluster, self.is_chief = cluster, cluster.rank == 0
        self._links = [links[rank] for rank in sorted(links)]
        self._ending = threading.Lock()
        for rank, link in links.items():
            link.socket.settimeout(SILENCE_SECONDS)
            threading.Thread(target=self._listen, args=(cluster.name(rank), link), daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()

    def gather(self, value):
        return self._exchange("value", value, list)

    def sum(self, numbers):
        return self._exchange("value", numbers, lambda lists: [sum(column) for column in zip(*lists, strict=True)])

    def explain(self, error, what="a reduction over the workers failed"):
        time.sleep(SILENCE_SECONDS + GRACE_SECONDS)  # by then, a listening thread finds the lost worker and ends this process
        raise LostWorkerError(f"{what} ({one_line_of(error)}); {self.cluster.again}")

    def leave(self):
        """Waits until every worker is done. From then on, a worker may go."""
        self._exchange("done", None, list)

    def fail(self, error):
        """Tells the other workers that this one ends with an error. After this, no listening thread ends it with another."""
        self._ending.acquire()
        interrupted = isinstance(error, KeyboardInterrupt)
        how = "was interrupted" if interrupted else f"ended with exit code {getattr(error, 'exit_code', 1)}; see its own error"
        self._tell_all("failed", f"{self.cluster.name(self.cluster.rank)} {how}, then {self.cluster.again}")

    def _exchange(self, kind, value, combine):
        """Sends `value` to the chief, which combines the values of all, in the order of ranks, and sends the result to all."""
        try:
            if self.is_chief:
                combined = combine([value, *(link.received.get() for link in self._links)])
                for link in self._links:
                    link.send(kind, combined)
                return combined
            self._links[0].send(kind, value)
            return self._links[0].received.get()
        except OSError as error:
            return self.explain(error, "the connection to another worker broke")

    def _beat(self):
        while True:
            self._tell_all("beat", None)
            time.sleep(BEAT_SECONDS)

    def _tell_all(self, kind, value):
        for link in self._links:
            link.tell(kind, value)

    def _listen(self, name, link):
        """Passes on what comes over a link. If its worker is lost, tells the other workers and ends the process."""
        try:
            while True:
                kind, value = link.receive()
                if kind in ("value", "done"):
                    link.received.put(value)
                if kind == "done":
                    return
                if kind == "failed":
                    time.sleep(GRACE_SECONDS)
                if kind in ("failed", "lost"):
                    self._end(value)
        except ConnectionError:
            what = "died, or its connection broke"
        except TimeoutError:
            what = f"was not heard of for {SILENCE_SECONDS:g} s: it hangs, or its machine or the network is down"
        except (OSError, ValueError) as error:
            what = f"cannot be reached any more ({one_line_of(error)})"
        self._end(f"{name} {what}; {self.cluster.again} to go on from the newest checkpoint")

    def _end(self, line):
        with self._ending:  # only once: the first line names the cause, later ones its effects
            self._tell_all("lost", line)
            end_process(line, LostWorkerError.exit_code)


@contextlib.contextmanager
def join(cluster):
    """Context manager that connects the workers of a Cluster. Yields Workers, or OneWorker if `cluster` is None.

    At its end it waits until all workers are done. An error inside ends the other workers with the exit code of LostWorkerError.
    Raises what `rendezvous.connect` raises.
    """
    if cluster is None:
        yield OneWorker()
        return
    workers = Workers(*rendezvous.connect(cluster))
    try:
        yield workers
    except BaseException as error:
        workers.fail(error)
        raise
    workers.leave()


def check_common_ground(workers, config, workdir):
    """Refuses workers that were started with different settings (SettingError) or see different workdirs (UnusableError).

    All raise the same error.
    """
    if workers.is_alone:
        return
    ours = {name: value for name, value in config_lib.to_values(config).items() if name not in OF_THIS_MACHINE}
    of_chief, *others = workers.gather(ours)
    for rank, values in enumerate(others, 1):
        for name in ours:
            if values[name] != of_chief[name]:
                given = f"the chief was given {of_chief[name]}, {workers.cluster.name(rank)} {values[name]}"
                raise SettingError(name, ours[name], f"{given}; {workers.cluster.again}")
    probe, token = workdir.path / PROBE, workers.from_chief(lambda: secrets.token_hex(8))
    workers.from_chief(lambda: probe.write_text(token))
    blind = [workers.cluster.name(rank) for rank, sees in enumerate(workers.gather(_sees(probe, token))) if not sees]
    workers.from_chief(lambda: probe.unlink(missing_ok=True))
    if blind:
        remedy = "give all workers one folder on a file system that they share"
        raise UnusableError(f"--workdir={workdir.path}: {', '.join(blind)} cannot see what the chief writes there; {remedy}")


def _sees(probe, token):
    """Whether this worker sees the file that the chief has written."""
    deadline = time.monotonic() + APPEAR_SECONDS
    while True:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if probe.read_text() == token:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)


def check_same_step(workers, workdir, checkpoint):
    """Raises UnusableError if the workers see different newest checkpoints, because they would resume at different steps."""
    steps = workers.gather(None if checkpoint is None else checkpoint.step)
    if any(step != steps[0] for step in steps):
        seen = [f"{workers.cluster.name(rank)} sees {'none' if step is None else step}" for rank, step in enumerate(steps)]
        remedy = "wait until the file system shows the same to all and start again, or give another --workdir"
        raise UnusableError(f"{workdir.checkpoints}: the workers see different checkpoints ({', '.join(seen)}); {remedy}")
