"""Chooses the tf.distribute strategy for the devices, and feeds batches to its replicas."""

import tensorflow as tf
from tensorflow.python.distribute.collective_all_reduce_strategy import CollectiveAllReduceExtended
from tensorflow.python.eager import context

from input_pipeline.common.batches import Shard
from input_pipeline.common.errors import SettingError
from train_lib.config import check_shares


def create_strategy(config, workers=None):
    """Sets the devices up and returns the strategy that trains on them. Call it before anything runs on a device.

    One CPU gets the default strategy, one GPU OneDeviceStrategy, which fetches its batches ahead of time; both run in the main
    thread. Several devices get MirroredStrategy, one replica each.
    Several workers get MultiWorkerMirroredStrategy; the call returns once all workers have called it.
    Raises SettingError if there are fewer devices than asked for, or if the replicas do not divide the global batch.
    """
    if config.general.debug:
        tf.config.run_functions_eagerly(True)
        tf.data.experimental.enable_debug_mode()
    if config.general.deterministic:
        tf.config.experimental.enable_op_determinism()
    gpus = [] if config.device.virtual_devices > 1 else tf.config.list_physical_devices("GPU")
    if workers and workers.cluster and workers.cluster.step:
        gpus = _shared_out(gpus, config.device.devices, workers)
    available = len(gpus) or config.device.virtual_devices
    wanted = config.device.devices or (1 if config.general.debug else available)
    if wanted > available:
        of_cpu = "logical CPU devices" if available > 1 else "device (the CPU)"
        usable = f"only {available} {'GPUs' if gpus else of_cpu} can be used"
        raise SettingError("devices", wanted, f"{usable}; give at most {available}, or 0 for all")
    ours = f"{wanted} {'GPU' if gpus else 'CPU'}"
    all_devices = workers.gather(ours) if workers else [ours]
    if set(all_devices) != {ours}:
        remedy = f"the workers, in the order of their ranks, have {', '.join(all_devices)}; give a number that all of them have"
        raise SettingError("devices", config.device.devices, remedy)
    check_shares(config, wanted * len(all_devices))
    tf.config.set_visible_devices(gpus[:wanted], "GPU")
    for gpu in gpus[:wanted]:
        tf.config.experimental.set_memory_growth(gpu, True)
    if config.device.virtual_devices > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * config.device.virtual_devices)
    if len(all_devices) > 1:
        strategy = _across_workers(workers.cluster, {"GPU": wanted} if gpus else {"CPU": 1})
        workers.gather(None)  # no reduction may begin before the servers of all workers are up
        return strategy
    if wanted == 1:
        return tf.distribute.OneDeviceStrategy("/gpu:0") if gpus else tf.distribute.get_strategy()
    if gpus:
        return tf.distribute.MirroredStrategy([f"/gpu:{index}" for index in range(wanted)])
    return mirror_on_cpu(wanted)


def _shared_out(gpus, wanted, workers):
    """This task's share of the GPUs that several tasks of SLURM on one node see."""
    step = workers.cluster.step
    sharers = [rank for rank, seen in enumerate(workers.gather(step.gpus)) if seen == step.gpus]
    share, position = len(gpus) // len(sharers), sharers.index(step.rank)
    if gpus and not share:
        remedy = "start fewer tasks per node, or give each task its own by srun --gpus-per-task=1"
        raise SettingError("devices", wanted, f"{len(sharers)} tasks on {step.node} share {len(gpus)} GPUs; {remedy}")
    return gpus[position * share : (position + 1) * share]


def mirror_on_cpu(num_replicas):
    """MirroredStrategy over logical CPU devices. It sums with plain additions.

    TensorFlow's default here, collective operations, is not faster (measured), and it allows only strategies of one size per
    process: the groups of two sizes collide, and the second strategy fails or hangs.
    """
    devices = [f"/cpu:{index}" for index in range(num_replicas)]
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=tf.distribute.ReductionToOneDevice())


def _across_workers(cluster, accelerators):
    """MultiWorkerMirroredStrategy on a Cluster that was checked already, so that TensorFlow does not read TF_CONFIG again."""
    # `train_lib.distribution.workers` watches over the workers. TensorFlow's own two ways are switched off, because they hold the
    # interpreter lock, and then no thread can end the process: the coordination service for minutes if a worker dies while it
    # connects (more than 110 s, measured), the health check for 10 s at a time if a worker hangs.
    context.context().configure_coordination_service(service_type="")
    CollectiveAllReduceExtended._enable_check_health = False
    kind, index, _ = cluster.tasks[cluster.rank]
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(cluster.spec()), task_type=kind, task_id=index, rpc_layer="grpc", num_accelerators=accelerators)
    return tf.distribute.MultiWorkerMirroredStrategy(resolver)


_kept_alive = []


def distribute(strategy, make_batches, split=None):
    """Feeds each replica with its own batches, and returns one endless iterator over them, which is never deleted.

    `make_batches` gets the Shard of this process's replicas and returns an endless tf.data.Dataset of their batches. If `split`
    is a DeviceSplit, its images are put on each device, and batches take them from there; SettingError if they do not fit.
    """

    def batches(context):
        local = context.num_replicas_in_sync // context.num_input_pipelines
        endless = make_batches(Shard(context.input_pipeline_id * local, local, context.num_replicas_in_sync))
        # If it did not know that batches never end, TensorFlow would ask all workers before each step whether they have one.
        return endless.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))

    options = None  # several workers only support this default
    if not (tf.config.list_logical_devices("GPU") or isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)):
        # CPU devices have nowhere to fetch batches to, and autotune cannot be switched off for the datasets that fetch.
        options = tf.distribute.InputOptions(
            experimental_fetch_to_device=False, experimental_replication_mode=tf.distribute.InputReplicationMode.PER_REPLICA)
    iterator = iter(strategy.distribute_datasets_from_function(batches, options))
    # Deleting an iterator that fetches would wait for its autotune thread, for up to a minute (measured).
    _kept_alive.append(iterator)
    return iterator if split is None or split.look_up is None else _LookedUp(strategy, iterator, split)


class _LookedUp:
    """An iterator over the batches of a DeviceSplit that adds their images. In a compiled loop this is a part of the loop."""

    def __init__(self, strategy, iterator, split):
        self._iterator = iterator
        devices = _devices(strategy)
        self._tables = strategy.experimental_distribute_values_from_function(
            lambda context: split.table_on(devices[context.replica_id_in_sync_group % len(devices)]))
        self._look_up = tf.function(lambda tables, batch: strategy.run(split.look_up, args=(tables, batch)), autograph=False)

    def __iter__(self):
        return self

    def __next__(self):
        return self._look_up(self._tables, next(self._iterator))


def _devices(strategy):
    """The names of this process's devices, in the order of its replicas."""
    if strategy.num_replicas_in_sync == 1:
        return ["/device:GPU:0" if tf.config.list_logical_devices("GPU") else "/device:CPU:0"]
    return list(strategy.extended.worker_devices)


def describe(strategy):
    """The devices that a strategy trains on, in words."""
    local = [device.split("/")[-1].removeprefix("device:") for device in _devices(strategy)]
    workers = strategy.num_replicas_in_sync // len(local)
    return ", ".join(local) + (f" on each of {workers} workers" if workers > 1 else "")
