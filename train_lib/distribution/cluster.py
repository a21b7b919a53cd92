"""Which machines train together: TF_CONFIG, judged before TensorFlow is imported."""

import dataclasses
import json

from input_pipeline.common.errors import ExpectedError, SettingError
from train_lib.config import check_shares

TASK_TYPES = ("chief", "worker")
EXAMPLE = '{"cluster": {"worker": ["a.example:2222", "b.example:2222"]}, "task": {"type": "worker", "index": 0}}'
LONGEST_VALUE = 300  # characters of TF_CONFIG in an error


class ClusterError(ExpectedError):
    """TF_CONFIG has a value that cannot work."""

    exit_code = 2

    def __init__(self, value, remedy):
        shown = value if len(value) <= LONGEST_VALUE else value[:LONGEST_VALUE] + "..."
        super().__init__(f"TF_CONFIG={shown}: {remedy}")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Several workers that train as one.

    Attributes:
      tasks: (type, index, address) of each worker, in the order of their ranks; the first is the chief, which writes the workdir.
      rank: which of them this process is.
    """

    tasks: tuple
    rank: int

    @property
    def addresses(self):
        """host:port of every worker, in the order of their ranks."""
        return tuple(address for _, _, address in self.tasks)

    def spec(self):
        """{task type: [address, ...]}, as TensorFlow takes it."""
        return {kind: [address for other, _, address in self.tasks if other == kind] for kind, _, _ in self.tasks}

    def name(self, rank):
        """What a worker is called in an error."""
        kind, index, address = self.tasks[rank]
        return f"{kind} {index} ({address})"


def split_address(address):
    """(host, port) of "host:port"; the brackets of an IPv6 host are taken off."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def read_cluster(environ):
    """The Cluster that the variable TF_CONFIG names; None where it is not set or names one task alone.

    Args:
      environ: the environment, a dict.

    Raises:
      ClusterError: the value is not what TensorFlow documents, or names tasks that do not train.
    """
    value = environ.get("TF_CONFIG", "").strip()
    if not value:
        return None
    try:
        content = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ClusterError(value, f"is not JSON ({error}); give {EXAMPLE}") from None
    cluster, task = (content.get(key) if isinstance(content, dict) else None for key in ("cluster", "task"))
    if not isinstance(cluster, dict) or not cluster or not isinstance(task, dict):
        raise ClusterError(value, f"needs a `cluster` and a `task`; give {EXAMPLE}")
    addresses = _addresses(value, cluster)
    tasks = tuple((kind, index, address) for kind in TASK_TYPES for index, address in enumerate(addresses.get(kind, ())))
    rank = _rank(value, task, addresses, tasks)
    return Cluster(tasks, rank) if len(tasks) > 1 else None


def _addresses(value, cluster):
    """{task type: [address, ...]}, judged."""
    for kind, addresses in cluster.items():
        if kind not in TASK_TYPES:
            raise ClusterError(value, f"names {kind!r} tasks; only {' and '.join(TASK_TYPES)} tasks train, remove the others")
        if not isinstance(addresses, list) or not addresses:
            raise ClusterError(value, f"`cluster` needs a list of addresses under {kind!r}; give {EXAMPLE}")
        for address in addresses:
            if not _is_address(address):
                raise ClusterError(value, f"{address!r} is no address; give host:port with a port from 1 to 65535")
    if len(cluster.get("chief", [])) > 1:
        raise ClusterError(value, "names more than one chief; leave one, and make the others workers")
    everything = [address for addresses in cluster.values() for address in addresses]
    for address in everything:
        if everything.count(address) > 1:
            raise ClusterError(value, f"names {address} more than once; give every worker an address of its own")
    return cluster


def _is_address(address):
    if not isinstance(address, str):
        return False
    host, colon, port = address.rpartition(":")
    is_host = host and not set(host) & set(" \t/@") and (":" not in host or (host[0] == "[" and host[-1] == "]"))
    return bool(colon and is_host and port.isascii() and port.isdecimal() and 1 <= int(port) <= 65535)


def _rank(value, task, addresses, tasks):
    """The position of this process's task among all."""
    kind, index = task.get("type"), task.get("index")
    if isinstance(index, str) and index.isdecimal():  # as some schedulers write it
        index = int(index)
    if kind not in list(addresses):  # a list: `kind` may be anything
        raise ClusterError(value, f"`task` has the type {kind!r}; give one that `cluster` names: {' or '.join(addresses)}")
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(addresses[kind]):
        raise ClusterError(value, f"`task` has the index {index!r}; give one from 0 to {len(addresses[kind]) - 1}")
    return [task[:2] for task in tasks].index((kind, index))


def check_settings(config, cluster):
    """Judges an ExperimentConfig for a Cluster, as far as that goes without looking at devices.

    Raises:
      SettingError: a setting cannot work on several workers.
    """
    several = f"TF_CONFIG names {len(cluster.tasks)} workers"
    if config.general.workdir is None:
        raise SettingError("workdir", None, f"{several}; give all of them one folder that they all see")
    if config.general.debug:
        raise SettingError("debug", True, f"runs on one device, and {several}; leave one of them out")
    if config.device.virtual_devices > 1:
        remedy = f"splits the CPU of one machine, and {several}; leave one of them out"
        raise SettingError("virtual_devices", config.device.virtual_devices, remedy)
    check_shares(config, len(cluster.tasks))
