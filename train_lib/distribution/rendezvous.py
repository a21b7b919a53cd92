"""How the workers of a cluster find each other: all connect to the chief, which waits until everyone is there.

Every worker keeps this one TCP connection to the chief. It is made on the chief's address before TensorFlow listens there, so it
needs no port of its own, and it stays open when TensorFlow takes the port over. TF_CONFIG gives every worker an address. SLURM
gives none: the chief takes one of a few ports that all tasks of its step know, the others tell it their own, and it tells all.
"""

import contextlib
import itertools
import json
import queue
import select
import socket
import threading
import time

from input_pipeline.common.errors import LostWorkerError, UnusableError
from input_pipeline.common.small_files import parse_json
from train_lib.distribution.cluster import split_address
from train_lib.distribution.slurm import FIRST_PORT, NUM_PORTS

CONNECT_SECONDS = 90.0  # how long to wait for all workers
RETRY_SECONDS = 0.2
HELLO_SECONDS = 5.0  # how long the chief may take to answer a worker
STRANGER_SECONDS = 2.0  # how long someone who has connected may take to say who it is; meanwhile the chief answers nobody else
SLURM_REMEDY = ("srun must start main.py in every task (a shell needs -n1), and the nodes must reach each other by their names "
                f"on ports {FIRST_PORT} to {FIRST_PORT + NUM_PORTS - 1}")
LONGEST_MESSAGE = 2**28  # bytes; a stranger may send something without an end


class Link:
    """A connection to another worker. A message is one line of JSON, [kind, value].

    The timeout of `socket` is how long `receive` waits. `received` queues what a listening thread has received; see `workers`.
    """

    def __init__(self, connection):
        self.socket, self.received, self.address = connection, queue.Queue(), None
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

    Returns the Cluster with the addresses of all, and {rank: Link}: on the chief one to every other worker, elsewhere one to the
    chief. Raises LostWorkerError if a worker does not come in time, UnusableError if this worker's port is taken, ClusterError if
    the chief was given another TF_CONFIG.
    """
    seconds = CONNECT_SECONDS if wait_seconds is None else wait_seconds
    address, listener = _listen(cluster)
    with listener:
        if cluster.rank == 0:
            return _receive_all(cluster, address, listener, seconds)
    return _find_chief(cluster, address, seconds)


def _listen(cluster):
    """The first address of this worker's that is free, and a socket that listens there.

    On a worker other than the chief this only proves that TensorFlow can have the port.
    """
    both_versions = {"family": socket.AF_INET6, "dualstack_ipv6": True} if socket.has_dualstack_ipv6() else {}
    addresses = cluster.candidates(cluster.rank)
    for address in addresses:
        port = split_address(address)[1]
        try:
            if cluster.step:
                _reserve(port)
            return address, socket.create_server(("", port), **both_versions)
        except OSError as error:
            reason = error.strerror
    ports, name = ", ".join(str(split_address(address)[1]) for address in addresses), cluster.name(cluster.rank)
    if cluster.step:
        raise UnusableError(f"SLURM: ports {ports} of this machine, for {name}, cannot be used ({reason}); {cluster.again}")
    remedy = "end the process that has it, perhaps a worker of an earlier run, or name another"
    raise UnusableError(f"TF_CONFIG: port {ports} of this machine, for {name}, cannot be used ({reason}); {remedy}")


_reserved = []


def _reserve(port):
    """Keeps the workers of other steps from taking a port until TensorFlow listens there. Raises OSError if one of them has it.

    The name, which is no file's, is free again when the process ends, however it ends.
    """
    reservation = socket.socket(socket.AF_UNIX)
    _reserved.append(reservation)
    reservation.bind(f"\0alexnet worker at port {port}")


def _receive_all(cluster, address, listener, seconds):
    deadline, links = time.monotonic() + seconds, {}
    while missing := [rank for rank in range(1, len(cluster.tasks)) if rank not in links]:
        listener.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            link = Link(listener.accept()[0])
        except TimeoutError:
            line = _missing_line(cluster, seconds, ", ".join(cluster.name(rank) for rank in missing))
            for link in links.values():
                link.tell("missing", line)
            raise LostWorkerError(line) from None
        rank = _greet(cluster, link, links)
        if rank is not None:
            links[rank] = link
    addresses = [address, *(links[rank].address for rank in sorted(links))]
    for link in links.values():
        link.tell("welcome", addresses)
    return cluster.at(addresses), links


def _greet(cluster, link, links):
    """The rank of a worker that has connected; None if it is not one of ours, or if that worker is already there."""
    link.socket.settimeout(STRANGER_SECONDS)
    try:
        kind, hello = link.receive()
    except (OSError, ValueError):
        kind, hello = None, None
    if kind != "hello" or not isinstance(hello, list) or len(hello) != 3 or not link.is_open():  # it may have given up
        link.close()
        return None
    rank, identity, link.address = hello
    if identity != cluster.identity or rank not in range(1, len(cluster.tasks)):
        link.tell("foreign", f"the chief was given other addresses ({', '.join(map(str, cluster.addresses))}); "
                             "give all workers the same `cluster`")
        return None
    if rank in links and links[rank].is_open():
        own = "start main.py once in each task" if cluster.step else "give each its own `task`"
        link.tell("refused", f"another process is {cluster.name(rank)} already; {own}")
        return None
    link.tell("wait", None)
    return rank


def _find_chief(cluster, address, seconds):
    deadline, failure = time.monotonic() + seconds, "it does not answer"
    places = itertools.cycle(cluster.candidates(0))
    while time.monotonic() < deadline:
        link = kind = None
        try:
            link = Link(socket.create_connection(split_address(next(places)), timeout=HELLO_SECONDS))
            link.send("hello", [cluster.rank, cluster.identity, address])
            kind, value = link.receive()
            if kind == "wait":
                link.socket.settimeout(seconds + HELLO_SECONDS)  # the chief may have started to wait just now
                kind, value = link.receive()
        except (OSError, ValueError) as error:
            failure = str(error)
        if kind == "welcome":
            return cluster.at(value), {0: link}
        if kind == "missing":
            raise LostWorkerError(value)
        if kind == "refused" or (kind == "foreign" and not cluster.step):  # another step may listen where we look first
            raise cluster.error(value)
        if link:
            link.close()
        time.sleep(RETRY_SECONDS)
    raise LostWorkerError(_missing_line(cluster, seconds, f"{cluster.name(0)}: {failure}"))


def _missing_line(cluster, seconds, names):
    of_tf_config = f"{cluster.again}, and check that they can reach each other's addresses"
    return f"no answer within {seconds:g} s from {names}; {SLURM_REMEDY if cluster.step else of_tf_config}"
