"""How the workers of a cluster find each other: all connect to the chief, which waits until everyone is there."""

import contextlib
import errno
import json
import socket
import time

from input_pipeline.common.errors import LostWorkerError, UnusableError
from train_lib.distribution.cluster import ClusterError, split_address

CONNECT_SECONDS = 90.0  # for all workers to come
RETRY_SECONDS = 0.2
HELLO_SECONDS = 5.0  # for whoever has connected to say who it is


class Rendezvous:
    """Connects one worker of a Cluster with the others.

    Args:
      cluster: Cluster.
      wait_seconds: how long to wait for all; None: CONNECT_SECONDS.
    """

    def __init__(self, cluster, wait_seconds=None):
        self._cluster = cluster
        self._seconds = CONNECT_SECONDS if wait_seconds is None else wait_seconds
        self._deadline = time.monotonic() + self._seconds

    def connect(self):
        """Waits for the others; returns {rank: socket}, on the chief to all others, elsewhere to the chief.

        Raises:
          LostWorkerError: one that must come did not in time.
          UnusableError: the port of this worker is taken.
          ClusterError: the chief was given another TF_CONFIG.
        """
        with self._listen() as listener:
            if self._cluster.rank == 0:
                return self._receive_all(listener)
        return {0: self._find_chief()}

    def _listen(self):
        """A listener on this worker's own port; where it is not the chief's it only proves that TensorFlow can have the port."""
        port = split_address(self._cluster.addresses[self._cluster.rank])[1]
        try:
            try:
                return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
            except (OSError, ValueError) as error:
                if getattr(error, "errno", None) == errno.EADDRINUSE:
                    raise
                return socket.create_server(("", port))  # a machine without IPv6
        except OSError as error:
            what = f"TF_CONFIG: port {port} of this machine, for {self._cluster.name(self._cluster.rank)}, cannot be used"
            remedy = "end the process that has it, perhaps a worker of an earlier run, or name another"
            raise UnusableError(f"{what} ({error.strerror}); {remedy}") from None

    def _receive_all(self, listener):
        connections = {}
        while missing := [rank for rank in range(1, len(self._cluster.tasks)) if rank not in connections]:
            listener.settimeout(max(self._deadline - time.monotonic(), 0.001))
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                line = self._missing_line([self._cluster.name(rank) for rank in missing])
                for connection in connections.values():
                    _send(connection, "missing", line)
                raise LostWorkerError(line) from None
            rank = self._greet(connection, connections)
            if rank is not None:
                connections[rank] = connection
        for connection in connections.values():
            _send(connection, "welcome", None)
        return connections

    def _greet(self, connection, connections):
        """The rank of a worker that has connected; None where it is none of ours, or one that is there already."""
        connection.settimeout(HELLO_SECONDS)
        try:
            kind, hello = _receive(connection)
        except OSError:
            kind, hello = None, None
        if kind != "hello" or not isinstance(hello, list) or len(hello) != 2:
            connection.close()
            return None
        rank, addresses = hello
        if addresses != list(self._cluster.addresses) or rank not in range(1, len(addresses)):
            _send(connection, "refused", f"the chief was given other addresses ({', '.join(self._cluster.addresses)}); "
                                         "give all workers the same `cluster`")
            return None
        if rank in connections and _is_open(connections[rank]):
            _send(connection, "refused", f"another process is {self._cluster.name(rank)} already; give each its own `task`")
            return None
        return rank

    def _find_chief(self):
        name, failure = self._cluster.name(0), "it does not answer"
        hello = [self._cluster.rank, list(self._cluster.addresses)]
        while time.monotonic() < self._deadline:
            with contextlib.ExitStack() as on_failure:
                try:
                    connection = socket.create_connection(split_address(self._cluster.addresses[0]), timeout=HELLO_SECONDS)
                    on_failure.callback(connection.close)
                    _send(connection, "hello", hello)
                    connection.settimeout(self._seconds + HELLO_SECONDS)  # the chief may have begun to wait just now
                    kind, value = _receive(connection)
                except OSError as error:
                    kind, failure = None, str(error)
                if kind == "welcome":
                    on_failure.pop_all()
                    return connection
                if kind == "missing":
                    raise LostWorkerError(value)
                if kind == "refused":
                    raise ClusterError(json.dumps(self._cluster.spec()), value)
            time.sleep(RETRY_SECONDS)
        raise LostWorkerError(self._missing_line([f"{name}: {failure}"]))

    def _missing_line(self, names):
        remedy = "start the same command on all workers, and see that they can reach each other's addresses"
        return f"no answer within {self._seconds:g} s from {', '.join(names)}; {remedy}"


def _send(connection, kind, value):
    with contextlib.suppress(OSError):  # whoever listens to the connection finds out
        connection.sendall(json.dumps([kind, value]).encode() + b"\n")


def _receive(connection):
    """The next (kind, value); (None, None) where the other side closed, or speaks another language.

    It reads byte by byte, so that what follows is left in the socket.
    """
    line = b""
    while not line.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte or len(line) > 100_000:
            return None, None
        line += byte
    try:
        kind, value = json.loads(line)
    except (ValueError, TypeError):
        return None, None
    return kind, value


def _is_open(connection):
    """Whether the other side has not closed a connection over which it has nothing to say."""
    try:
        return bool(connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return True
    except OSError:
        return False
