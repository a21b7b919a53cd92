"""Which tf.distribute strategy: chosen from the devices that are there."""

import tensorflow as tf
from tensorflow.python.distribute.collective_all_reduce_strategy import CollectiveAllReduceExtended
from tensorflow.python.eager import context

from input_pipeline.common.batches import Shard
from input_pipeline.common.errors import SettingError
from train_lib.config import check_shares


def create_strategy(config, workers=None):
    """Sets the devices up and returns the strategy that trains on them. Call it before anything runs on a device.

    One device: the default strategy, in the main thread. Several: MirroredStrategy, one replica each. Several workers:
    MultiWorkerMirroredStrategy, which returns when all have called this.

    Args:
      config: ExperimentConfig.
      workers: Workers; None, or OneWorker: this machine alone.

    Raises:
      SettingError: more devices are asked for than there are, or the global batch does not divide by the replicas.
    """
    if config.general.debug:
        tf.config.run_functions_eagerly(True)
        tf.data.experimental.enable_debug_mode()
    if config.general.deterministic:
        tf.config.experimental.enable_op_determinism()
    gpus = [] if config.device.virtual_devices > 1 else tf.config.list_physical_devices("GPU")
    there = len(gpus) or config.device.virtual_devices
    wanted = config.device.devices or (1 if config.general.debug else there)
    if wanted > there:
        kind = "GPUs" if gpus else "logical CPU devices" if there > 1 else "device (the CPU)"
        raise SettingError("devices", wanted, f"only {there} {kind} can be used; give at most {there}, or 0 for all")
    ours = f"{wanted} {'GPU' if gpus else 'CPU'}"
    everyones = workers.gather(ours) if workers else [ours]
    if set(everyones) != {ours}:
        remedy = f"the workers, in the order of their ranks, have {', '.join(everyones)}; give a number and a kind that all have"
        raise SettingError("devices", config.device.devices, remedy)
    check_shares(config, wanted * len(everyones))
    _set_up(gpus[:wanted], config.device.virtual_devices)
    if len(everyones) > 1:
        strategy = _across_workers(workers.cluster, {"GPU": wanted} if gpus else {"CPU": 1})
        workers.gather(None)  # until the servers of all are up, no reduction may begin
        return strategy
    if wanted == 1:
        return tf.distribute.get_strategy()
    if gpus:
        return tf.distribute.MirroredStrategy([f"/gpu:{index}" for index in range(wanted)])
    return mirror_on_cpu(wanted)


def mirror_on_cpu(num_replicas):
    """MirroredStrategy over logical CPU devices.

    It sums by plain additions. TensorFlow's default here, collective operations, is no faster (measured), and a process could
    not have two strategies of different sizes: their groups collide, and the second fails or hangs.
    """
    devices = [f"/cpu:{index}" for index in range(num_replicas)]
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=tf.distribute.ReductionToOneDevice())


def _set_up(gpus, virtual_devices):
    """Hides the GPUs that are not trained on, lets the others' memory grow, splits the CPU if asked to."""
    tf.config.set_visible_devices(gpus, "GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if virtual_devices > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * virtual_devices)


def _across_workers(cluster, accelerators):
    """MultiWorkerMirroredStrategy on a Cluster, from what was judged instead of TF_CONFIG once more."""
    # `train_lib.distribution.workers` watches over the workers. TensorFlow's own two ways hold the interpreter lock, so that no
    # thread can end the process: the coordination service for minutes where a worker dies while it connects (still there after
    # 110 s, measured), the health check for 10 s at a time where one hangs.
    context.context().configure_coordination_service(service_type="")
    CollectiveAllReduceExtended._enable_check_health = False
    kind, index, _ = cluster.tasks[cluster.rank]
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(cluster.spec()), task_type=kind, task_id=index, rpc_layer="grpc", num_accelerators=accelerators)
    return tf.distribute.MultiWorkerMirroredStrategy(resolver)


_kept_alive = []


def distribute(strategy, make_batches, split=None):
    """Lets `make_batches(shard)` feed the replicas, each with its own batches; returns one endless iterator, never deleted.

    Where `split` is a DeviceSplit, its images are put on each device, and the batches get theirs from there.

    Raises:
      SettingError: the images do not fit on a device.
    """

    def batches(context):
        local = context.num_replicas_in_sync // context.num_input_pipelines
        endless = make_batches(Shard(context.input_pipeline_id * local, local, context.num_replicas_in_sync))
        # Where several workers could run out of batches, TensorFlow would ask all of them before each step.
        return endless.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))

    # On CPU devices there is nowhere to fetch to, and the datasets that do it cannot have their autotune switched off.
    on_host = tf.distribute.InputOptions(
        experimental_fetch_to_device=False, experimental_replication_mode=tf.distribute.InputReplicationMode.PER_REPLICA)
    fetches = tf.config.list_logical_devices("GPU") or isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    options = None if fetches else on_host  # several workers know the default alone
    iterator = iter(strategy.distribute_datasets_from_function(batches, options))
    # Deleting an iterator that fetches waits for its autotune thread, up to a minute (measured).
    _kept_alive.append(iterator)
    return iterator if split is None or split.look_up is None else _LookedUp(strategy, iterator, split)


class _LookedUp:
    """An iterator over the batches of a DeviceSplit that makes their images; inside a compiled loop, as a part of it."""

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
    if strategy.num_replicas_in_sync > 1:
        local = [device.split("/")[-1].removeprefix("device:") for device in strategy.extended.worker_devices]
        workers = strategy.num_replicas_in_sync // len(local)
        return ", ".join(local) + (f" on each of {workers} workers" if workers > 1 else "")
    return "GPU:0" if tf.config.list_logical_devices("GPU") else "CPU:0"
