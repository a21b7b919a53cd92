"""Several workers as one run: they find each other, agree on values, and end together when one is lost. Knows no TensorFlow.

Every worker keeps one TCP connection to the chief, made on the chief's address in TF_CONFIG before TensorFlow listens there:
it needs no port of its own, and lives on when TensorFlow takes the port over. A message is one line of JSON, [kind, value].

TensorFlow sees a lost worker from inside a reduction alone, waits for minutes at least for one that never comes, and says nothing
to those that wait elsewhere: for data, for the chief's checkpoint, in an evaluation. Hence the heartbeat here, which replaces its
own (see `train_lib.distribution.strategy`).
"""

import contextlib
import json
import queue
import socket
import threading
import time

from input_pipeline.common.errors import LostWorkerError
from train_lib.cli.signals import end_process
from train_lib.distribution.rendezvous import Rendezvous

BEAT_SECONDS = 2.0
# Longer than any pause of a healthy process that was seen (tracing VGG16 on a busy core: 3 s), far below two minutes.
SILENCE_SECONDS = 20.0
# For a worker to end by its own error, where all make the same one, before it ends by another's.
GRACE_SECONDS = 3.0


class OneWorker:
    """A run on one machine: what `Workers` promises, done alone."""

    cluster = None
    is_chief = True
    is_alone = True

    def gather(self, value):
        """What each worker passes, JSON values, as a list in the order of their ranks; the same list on every worker."""
        return [value]

    def sum(self, numbers):
        """The sums over all workers of a list of numbers, which has one length on all."""
        return numbers

    def from_chief(self, function):
        """What `function` returns on the chief, a JSON value; the others do not call it."""
        return self.gather(function() if self.is_chief else None)[0]

    def chief_first(self, function):
        """Calls `function` on every worker, on the others once the chief has done it; returns what it returned here."""
        if self.is_chief:
            result = function()
        self.gather(None)
        return result if self.is_chief else function()

    def explain(self, error):
        """Turns an error that a lost worker may have caused into the line that names the worker; returns where none did."""


class Workers(OneWorker):
    """This process among the workers of a Cluster.

    Args:
      cluster: Cluster.
      sockets: {rank: connected socket}: on the chief one for every other worker, elsewhere one, for the chief.
    """

    is_alone = False

    def __init__(self, cluster, sockets):
        self.cluster = cluster
        self.is_chief = cluster.rank == 0
        self._links = [_Link(rank, sockets[rank]) for rank in sorted(sockets)]
        self._ending = threading.Lock()
        for link in self._links:
            threading.Thread(target=self._listen, args=(link,), daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()

    def gather(self, value):
        return self._exchange("value", value, list)

    def sum(self, numbers):
        return self._exchange("value", numbers, lambda lists: [sum(column) for column in zip(*lists, strict=True)])

    def explain(self, error):
        self._wait_for_the_end(f"a reduction over the workers failed ({_one_line(error)})")

    def leave(self):
        """Waits until every worker is done; from then on, one that goes is not missed."""
        self._exchange("done", None, list)

    def fail(self, error):
        """Tells the others that this worker ends with an error, which from here on no listening thread forestalls."""
        self._ending.acquire()
        interrupted = isinstance(error, KeyboardInterrupt)
        how = "was interrupted" if interrupted else f"ended with exit code {getattr(error, 'exit_code', 1)}; see its own error"
        self._tell_all("failed", f"{self.cluster.name(self.cluster.rank)} {how}, then start the same command on all workers")

    def _exchange(self, kind, value, combine):
        """Sends `value` to the chief, which combines those of all, in the order of ranks, and sends the result to all."""
        try:
            if self.is_chief:
                combined = combine([value, *(link.received.get() for link in self._links)])
                for link in self._links:
                    link.send(kind, combined)
                return combined
            self._links[0].send(kind, value)
            return self._links[0].received.get()
        except OSError as error:
            return self._wait_for_the_end(f"the connection to another worker broke ({_one_line(error)})")

    def _wait_for_the_end(self, reason):
        """Lets the listening threads find out which worker is lost and end this process; raises where they do not."""
        time.sleep(SILENCE_SECONDS + GRACE_SECONDS)
        raise LostWorkerError(f"{reason}; start the same command on all workers")

    def _beat(self):
        while True:
            self._tell_all("beat", None)
            time.sleep(BEAT_SECONDS)

    def _tell_all(self, kind, value):
        for link in self._links:
            with contextlib.suppress(OSError):  # whoever listens to the link finds out
                link.send(kind, value)

    def _listen(self, link):
        """Hands on what comes over a link; ends the process when its worker is lost, and tells the others."""
        name = self.cluster.name(link.rank)
        try:
            for kind, value in link.messages():
                if kind in ("value", "done"):
                    link.received.put(value)
                if kind == "done":
                    return
                if kind == "failed":
                    time.sleep(GRACE_SECONDS)
                    self._end(value)
                if kind == "lost":
                    self._end(value)
            what = "died, or its connection broke"
        except ConnectionError:
            what = "died, or its connection broke"
        except TimeoutError:
            what = f"was not heard of for {SILENCE_SECONDS:g} s: it hangs, or its machine or the network is down"
        except (OSError, ValueError) as error:
            what = f"cannot be reached any more ({_one_line(error)})"
        self._end(f"{name} {what}; start the same command on all workers to go on from the newest checkpoint")

    def _end(self, line):
        with self._ending:  # the first line names the cause, any later one an effect; never released
            self._tell_all("lost", line)
            end_process(line, LostWorkerError.exit_code)


class _Link:
    """One connection: whole messages out, values in."""

    def __init__(self, rank, connection):
        self.rank = rank
        self.received = queue.Queue()
        self._socket = connection
        self._socket.settimeout(SILENCE_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sending = threading.Lock()

    def send(self, kind, value):
        line = json.dumps([kind, value]).encode() + b"\n"
        with self._sending:
            self._socket.sendall(line)

    def messages(self):
        """Yields (kind, value) until the other side closes the connection; raises TimeoutError after a silence."""
        pending = b""
        while received := self._socket.recv(1 << 20):
            *lines, pending = (pending + received).split(b"\n")
            for line in lines:
                yield json.loads(line)


@contextlib.contextmanager
def join(cluster):
    """Context manager in which the workers of a Cluster are connected; gives Workers, or OneWorker where `cluster` is None.

    Leaving it waits until all are done; an error inside ends the other workers with LostWorkerError's exit code.

    Raises:
      LostWorkerError: not all workers came in time; the error names those that did not.
      ExpectedError: this worker's address cannot be used, or the workers were given different clusters.
    """
    if cluster is None:
        yield OneWorker()
        return
    workers = Workers(cluster, Rendezvous(cluster).connect())
    try:
        yield workers
    except BaseException as error:
        workers.fail(error)
        raise
    workers.leave()


def _one_line(error):
    return " ".join(str(error).split())[:300] or type(error).__name__
