"""How workers connect and end, without TensorFlow: with threads, and with processes where one has to end."""

import json
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import pytest
from helpers import ROOT

from input_pipeline.common.errors import LostWorkerError, UnusableError
from train_lib.distribution import rendezvous
from train_lib.distribution.cluster import Cluster, ClusterError
from train_lib.distribution.rendezvous import _find_chief, connect
from train_lib.distribution.workers import OneWorker, Workers


def free_addresses(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{listener.getsockname()[1]}" for listener in sockets]
    for listener in sockets:
        listener.close()
    return addresses


def clusters(addresses):
    tasks = tuple(("worker", index, address) for index, address in enumerate(addresses))
    return [Cluster(tasks, rank) for rank in range(len(addresses))]


def together(*functions):
    """Calls the functions in parallel; returns what each returned or raised."""
    results = [None] * len(functions)

    def call(index, function):
        try:
            results[index] = function()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=call, args=pair) for pair in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


def test_all_workers_get_the_same_answers():
    """With values in another order, or a sum that differs in the last bit, workers would decide differently."""
    def work(cluster):
        workers = Workers(*connect(cluster, wait_seconds=20))
        order = []
        answers = (
            workers.gather([cluster.rank, None, float("inf")]), workers.sum([0.1 * 3**cluster.rank, cluster.rank]),
            workers.from_chief(lambda: order.append("chief") or "told"), workers.chief_first(lambda: len(order)),
        )
        workers.leave()
        return answers, order

    (first, asked), *others = together(*(lambda cluster=cluster: work(cluster) for cluster in clusters(free_addresses(3))))
    assert first[:3] == ([[rank, None, float("inf")] for rank in range(3)], [0.1 + 0.1 * 3 + 0.1 * 9, 3], "told")
    assert asked == ["chief"] and all(answers[:3] == first[:3] and order == [] for answers, order in others)


def test_one_worker_alone_answers_itself():
    """The loop asks on one machine too, where there is nobody to wait for."""
    alone = OneWorker()
    assert (alone.gather(1), alone.sum([1, 2]), alone.from_chief(lambda: 3), alone.chief_first(lambda: 4)) == ([1], [1, 2], 3, 4)


def test_all_workers_learn_who_did_not_come():
    """TensorFlow would go on waiting without saying for whom."""
    addresses = free_addresses(3)
    start = time.monotonic()
    chief, second = together(*((lambda cluster=cluster: connect(cluster, wait_seconds=2)) for cluster in clusters(addresses)[:2]))
    assert time.monotonic() - start < 10
    for error in (chief, second):
        assert isinstance(error, LostWorkerError) and error.exit_code == 75
        assert f"worker 2 ({addresses[2]})" in str(error) and addresses[1] not in str(error)
    start = time.monotonic()
    (orphan,) = together(lambda: connect(clusters(addresses)[1], wait_seconds=1))
    assert isinstance(orphan, LostWorkerError) and f"worker 0 ({addresses[0]})" in str(orphan)
    assert time.monotonic() - start < 10


def test_strangers_are_turned_away():
    """A port scanner must not take a worker's place, and a worker of another cluster must not join."""
    addresses = free_addresses(2)
    chief, worker = clusters(addresses)
    meeting = threading.Thread(target=lambda: links.update(connect(chief, wait_seconds=20)[1]))
    links = {}
    meeting.start()
    host, port = addresses[0].split(":")
    while True:
        try:
            with socket.create_connection((host, int(port))) as stranger:
                stranger.sendall(b"GET / HTTP/1.1\n")
                assert stranger.recv(1) == b""
            with socket.create_connection((host, int(port))) as stranger:  # closed by a reset
                stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
    other = clusters([addresses[0], "elsewhere:1"])[1]
    (refused,) = together(lambda: _find_chief(Cluster(other.tasks, 1), other.addresses[1], 5))
    assert isinstance(refused, ClusterError) and "same `cluster`" in str(refused)
    assert 0 in connect(worker, wait_seconds=20)[1]
    meeting.join(20)
    assert list(links) == [1]


def test_a_second_process_with_the_same_task_is_refused_while_the_first_waits(monkeypatch):
    """Two processes with one `task` must not train one share twice."""
    chief, worker, last = clusters(free_addresses(3))
    greet, is_there = rendezvous._greet, threading.Event()

    def noting(*arguments):
        rank = greet(*arguments)
        if rank == worker.rank:
            is_there.set()
        return rank

    monkeypatch.setattr(rendezvous, "_greet", noting)
    calls = [threading.Thread(target=connect, args=(cluster, 20), daemon=True) for cluster in (chief, worker)]
    for call in calls:
        call.start()
    assert is_there.wait(20)
    (refused,) = together(lambda: _find_chief(worker, worker.addresses[1], 10))
    assert isinstance(refused, ClusterError) and "another process is worker 1 " in str(refused)
    assert 0 in connect(last, wait_seconds=20)[1]
    for call in calls:
        call.join(20)
        assert not call.is_alive()


def test_a_taken_port_is_named():
    """TensorFlow lets two processes listen on one port, and then messages go to either."""
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UnusableError, match=f"port {port} .*worker 0"):
            connect(clusters([f"127.0.0.1:{port}", "b:2"])[0])


MEMBER = """
import json, pathlib, sys, time
from train_lib.distribution import workers
from train_lib.distribution.cluster import Cluster
workers.SILENCE_SECONDS, workers.BEAT_SECONDS, workers.GRACE_SECONDS = 3.0, 0.2, 0.5
addresses, rank, folder = json.loads(sys.argv[1]), int(sys.argv[2]), pathlib.Path(sys.argv[3])
with workers.join(Cluster(tuple(("worker", i, a) for i, a in enumerate(addresses)), rank)) as team:
    team.gather(None)
    (folder / str(rank)).touch()
    while not (folder / f"fail{rank}").exists():
        time.sleep(0.05)
    raise ValueError("bad data")
"""


@pytest.mark.parametrize(("victim", "how"), [(0, "SIGKILL"), (2, "SIGKILL"), (0, "SIGSTOP"), (2, "SIGSTOP"), (1, "error")])
def test_all_end_when_one_is_lost(tmp_path, victim, how):
    """Otherwise they would wait forever. They must name the first worker that was lost, and not the chief that followed."""
    addresses = free_addresses(3)
    command = [sys.executable, "-c", MEMBER, json.dumps(addresses)]
    members = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True) for rank in range(3)]
    try:
        deadline = time.monotonic() + 30
        while len(list(pathlib.Path(tmp_path).iterdir())) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        if how == "error":
            (tmp_path / f"fail{victim}").touch()
        else:
            members[victim].send_signal(getattr(signal, how))
        for rank, member in enumerate(members):
            if rank != victim:
                error = member.communicate(timeout=20)[1]
                assert member.returncode == 75
                assert error.startswith(f"error: worker {victim} ({addresses[victim]})") and error.count("\n") == 1, error
    finally:
        for member in members:
            member.kill()
            member.communicate()
