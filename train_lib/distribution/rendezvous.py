"""How the workers of a cluster find each other: all connect to the chief, which waits until everyone is there.

Every worker keeps this one TCP connection to the chief. It is made on the chief's address in TF_CONFIG before TensorFlow listens
there, so it needs no port of its own, and it stays open when TensorFlow takes the port over.
"""

import contextlib
import json
import queue
import select
import socket
import threading
import time

from input_pipeline.common.errors import LostWorkerError, UnusableError
from input_pipeline.common.small_files import parse_json
from train_lib.distribution.cluster import ClusterError, split_address

CONNECT_SECONDS = 90.0  # how long to wait for all workers
RETRY_SECONDS = 0.2
HELLO_SECONDS = 5.0  # how long someone who has connected may take to say who it is
LONGEST_MESSAGE = 2**28  # bytes; a stranger may send something without an end


class Link:
    """A connection to another worker. A message is one line of JSON, [kind, value].

    The timeout of `socket` is how long `receive` waits. `received` queues what a listening thread has received; see `workers`.
    """

    def __init__(self, connection):
        self.socket, self.received = connection, queue.Queue()
        self._lines, self._sending = connection.makefile("rb", 2**16), threading.Lock()
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(HELLO_SECONDS)

    def send(self, kind, value):
        """Sends a message. Raises OSError if the connection is broken."""
        line = json.dumps([kind, value]).encode() + b"\n"
        with self._sending:
            self.socket.sendall(line)

    def tell(self, kind, value):
        """Sends a message if the connection works. Whoever listens to it notices if it does not."""
        with contextlib.suppress(OSError):
            self.send(kind, value)

    def receive(self):
        """Waits for the next message and returns (kind, value).

        Raises ConnectionError if the other side closed the connection, TimeoutError if no message came in time, ValueError if
        what came is not a message.
        """
        line = self._lines.readline(LONGEST_MESSAGE)
        if not line.endswith(b"\n"):
            raise ConnectionError("the other side closed the connection")
        message = parse_json(line)
        if not isinstance(message, list) or len(message) != 2:
            raise ValueError("what came is not a message")
        return message

    def is_open(self):
        """Whether the other side, which has nothing to send at the moment, has not closed the connection."""
        return not select.select([self.socket], [], [], 0)[0]

    def close(self):
        """Closes the connection."""
        self._lines.close()
        self.socket.close()


def connect(cluster, wait_seconds=None):
    """Connects this worker with the others, and waits `wait_seconds` (None: CONNECT_SECONDS) until all are there.

    Returns {rank: Link}: on the chief one to every other worker, elsewhere one to the chief. Raises LostWorkerError if a worker
    does not come in time, UnusableError if this worker's port is taken, ClusterError if the chief was given another TF_CONFIG.
    """
    seconds = CONNECT_SECONDS if wait_seconds is None else wait_seconds
    with _listen(cluster) as listener:
        if cluster.rank == 0:
            return _receive_all(cluster, listener, seconds)
    return {0: _find_chief(cluster, seconds)}


def _listen(cluster):
    """Listens on this worker's own port. On a worker other than the chief this only proves that TensorFlow can have the port."""
    port = split_address(cluster.addresses[cluster.rank])[1]
    both_versions = {"family": socket.AF_INET6, "dualstack_ipv6": True} if socket.has_dualstack_ipv6() else {}
    try:
        return socket.create_server(("", port), **both_versions)
    except OSError as error:
        what = f"TF_CONFIG: port {port} of this machine, for {cluster.name(cluster.rank)}, cannot be used"
        remedy = "end the process that has it, perhaps a worker of an earlier run, or name another"
        raise UnusableError(f"{what} ({error.strerror}); {remedy}") from None


def _receive_all(cluster, listener, seconds):
    deadline, links = time.monotonic() + seconds, {}
    while missing := [rank for rank in range(1, len(cluster.tasks)) if rank not in links]:
        listener.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            link = Link(listener.accept()[0])
        except TimeoutError:
            line = _missing_line(seconds, ", ".join(cluster.name(rank) for rank in missing))
            for link in links.values():
                link.tell("missing", line)
            raise LostWorkerError(line) from None
        rank = _greet(cluster, link, links)
        if rank is not None:
            links[rank] = link
    for link in links.values():
        link.tell("welcome", None)
    return links


def _greet(cluster, link, links):
    """The rank of a worker that has connected; None if it is not one of ours, or if that worker is already there."""
    try:
        kind, hello = link.receive()
    except (OSError, ValueError):
        kind, hello = None, None
    if kind != "hello" or not isinstance(hello, list) or len(hello) != 2:
        link.close()
        return None
    rank, addresses = hello
    if addresses != list(cluster.addresses) or rank not in range(1, len(addresses)):
        link.tell("refused", f"the chief was given other addresses ({', '.join(cluster.addresses)}); "
                             "give all workers the same `cluster`")
        return None
    if rank in links and links[rank].is_open():
        link.tell("refused", f"another process is {cluster.name(rank)} already; give each its own `task`")
        return None
    return rank


def _find_chief(cluster, seconds):
    deadline, failure = time.monotonic() + seconds, "it does not answer"
    while time.monotonic() < deadline:
        link = kind = None
        try:
            link = Link(socket.create_connection(split_address(cluster.addresses[0]), timeout=HELLO_SECONDS))
            link.send("hello", [cluster.rank, list(cluster.addresses)])
            link.socket.settimeout(seconds + HELLO_SECONDS)  # the chief may have started to wait just now
            kind, value = link.receive()
        except (OSError, ValueError) as error:
            failure = str(error)
        if kind == "welcome":
            return link
        if kind == "missing":
            raise LostWorkerError(value)
        if kind == "refused":
            raise ClusterError(json.dumps(cluster.spec()), value)
        if link:
            link.close()
        time.sleep(RETRY_SECONDS)
    raise LostWorkerError(_missing_line(seconds, f"{cluster.name(0)}: {failure}"))


def _missing_line(seconds, names):
    remedy = "start the same command on all workers, and check that they can reach each other's addresses"
    return f"no answer within {seconds:g} s from {names}; {remedy}"
