"""What all splits share: the host's cores and free memory, which rows a replica gets, tf.data's options, pixel statistics."""

import dataclasses
import math
import os
import pathlib

import numpy as np
import tensorflow as tf

# How many threads decode if --decode_threads is 0; tf.data's autotune, which would choose a number, is off.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
SUMMED_NUMBERS = 3 * 2**17  # float64 numbers that are multiplied at once; more do not fit in the caches
# Files of control groups, version 2 and 1: the limit of a container or a batch job, what it uses, and the page cache in that.
_GROUPS = (("memory.max", "memory.current", "memory.stat", "file"),
           ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_cache"))


def free_gigabytes(root="/"):
    """The memory that this process can get: free memory and page cache (often the data's own files), within its control group."""
    def entry(file, name):
        lines = (line.split() for line in file.read_text().splitlines())
        return next(int(words[1]) for words in lines if words and words[0] == name)

    try:
        free = entry(pathlib.Path(root, "proc/meminfo"), "MemAvailable:") * 1024
    except (OSError, StopIteration):  # not Linux
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    group = pathlib.Path(root, "sys/fs/cgroup")
    for limit, used, statistics, cached in _GROUPS:
        try:
            limit, used = int((group / limit).read_text()), int((group / used).read_text())
            free = min(free, max(limit - used + entry(group / statistics, cached), 0))
        except (OSError, ValueError, StopIteration):  # there is no such group, or its limit is "max"
            continue
    return free / 1e9


@dataclasses.dataclass(frozen=True)
class Shard:
    """The replicas that one input pipeline feeds: `local_replicas` of `num_replicas`, starting at `first_replica`."""

    first_replica: int = 0
    local_replicas: int = 1
    num_replicas: int = 1


ONE_REPLICA = Shard()


def without_autotune(dataset, threads=0):
    """Sets the options of tf.data: deterministic, all parallelism explicit, no sharding by tf.distribute.

    With `threads`, the dataset gets that many threads of its own. Otherwise it shares the threads that TensorFlow uses for
    everything; decoding there would delay the operations of the train step. Autotune is off, because its thread can delay the
    end of an iterator by 10 ms * (2^k - 1), in the worst case by minutes (measured). It belongs to the iterator: options set on
    the outermost dataset also apply to all datasets inside it.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    options.deterministic = True
    if threads:
        options.threading.private_threadpool_size = threads
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.with_options(options)


def timed(dataset):
    """Adds "waited" to the elements of a dataset, dicts: the seconds from asking for the element to having it, float64.

    The host reads the clock where it hands the batch over, not in the train loop, which would have to wait for the device then.
    """
    asked = tf.data.Dataset.counter().map(lambda _: tf.timestamp())  # zip asks this one first
    pairs = tf.data.Dataset.zip(asked, dataset)
    return without_autotune(pairs.map(lambda start, element: element | {"waited": tf.timestamp() - start}))


def num_evaluation_steps(num_examples, global_batch_size):
    """How many global batches contain every example once; the last one is padded."""
    return -(-num_examples // global_batch_size)


class Split:
    """What all splits have in common. A subclass has `_pixel_parts`: the images to measure, as uint8 [..., h, w, 3]."""

    look_up = None  # the batches contain images; a DeviceSplit has a method of this name, because its batches do not

    @property
    def on_host(self):
        """A split of the same examples whose batches contain images: this one."""
        return self

    def pixel_statistics(self):
        """Mean and standard deviation per channel, float64 [3] each, in the range [0, 255]."""
        products, totals, count = self._patch_sums(1, math.inf)
        mean = totals / count
        return mean, np.sqrt(np.maximum(np.diag(products) / count - mean**2, 0))

    def pixel_covariance(self):
        """Covariance of the channels, float64 [3, 3], in the range [0, 255] squared."""
        return self.patch_covariance(1, math.inf)

    def patch_covariance(self, size, images=5000):
        """Covariance of all patches of `size` x `size` pixels, at most the height and width, in the first so many `images`.

        A stream only looks at the images that it measures anyway. Returns float64 [3 size^2, 3 size^2], in the range [0, 255]
        squared. The components of a patch are ordered by row, column and channel, and each has its own mean.
        """
        products, totals, count = self._patch_sums(size, images)
        return products / count - np.outer(totals, totals) / count**2

    def _patch_sums(self, size, images):
        """Sums over patches of products of two components and of components, exact below 2**53 (10**11 patches); their number."""
        components, seen = 3 * size**2, 0
        products, totals, count = np.zeros((components, components)), np.zeros(components), 0
        for part in self._pixel_parts():
            part = part.reshape(-1, *part.shape[-3:])
            part = part[: int(min(images - seen, len(part)))]
            seen += len(part)
            patches = np.lib.stride_tricks.sliding_window_view(part, (size, size), (1, 2)).transpose(0, 1, 2, 4, 5, 3)
            rows = max(1, SUMMED_NUMBERS // patches[:, :1].size)
            for first in range(0, patches.shape[1], rows):
                band = patches[:, first : first + rows].reshape(-1, components).astype(np.float64)
                products += band.T @ band
                totals += np.ones(len(band)) @ band
                count += len(band)
            if seen >= images:
                break
        return products, totals, count
