"""What the resident and the streaming path share: which rows of a global batch a replica gets, and tf.data's options."""

import dataclasses
import os

import tensorflow as tf

# Threads that decode where --decode_threads does not say: autotune, which would choose, is off.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclasses.dataclass(frozen=True)
class Shard:
    """The replicas that one input pipeline feeds: `local_replicas` of `num_replicas`, from `first_replica` on."""

    first_replica: int = 0
    local_replicas: int = 1
    num_replicas: int = 1


ONE_REPLICA = Shard()


def without_autotune(dataset, threads=0):
    """Fixes tf.data's behaviour: deterministic, all parallelism explicit, no sharding by tf.distribute.

    With `threads`, a dataset works in so many of its own; without, in those that TensorFlow has for everything: decoding there
    would keep the step's operations waiting.

    The autotune thread can hold up the end of an iterator for 10 ms * (2^k - 1), minutes at worst (measured). It belongs to
    an iterator, not to a transformation: to set the options once, on the dataset that is iterated, switches it off for all
    that lies inside, nested datasets too.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    options.deterministic = True
    if threads:
        options.threading.private_threadpool_size = threads
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.with_options(options)


def stretches(start, stop, num_examples):
    """Examples start to stop - 1 of a run, cut at the epochs: yields (epoch, first position, position after the last)."""
    while start < stop:
        epoch, first = divmod(start, num_examples)
        last = min(first + stop - start, num_examples)
        yield epoch, first, last
        start += last - first


def num_evaluation_steps(num_examples, global_batch_size):
    """How many global batches, the last one padded, show every example once."""
    return -(-num_examples // global_batch_size)
