"""Opens a split of a source: in memory if it fits, from the cache if it is there, else as a stream."""

import contextlib
import dataclasses
import math

from input_pipeline.common.batches import free_gigabytes
from input_pipeline.common.errors import SettingError, one_line
from input_pipeline.sources.base import first_of
from input_pipeline.splits import cache, resident
from input_pipeline.splits.device import DeviceSplit
from input_pipeline.splits.stream import StreamingSplit, training_margin

# Of the free memory. With their Windows, training images take 3.5 times their size, and the runtime needs the rest.
MEMORY_SHARE = 0.2


def decide_input(config, source, split, flag):
    """Replaces --input=auto in a DataConfig by memory if `split` of a Source fits there, else by stream.

    All splits of a run must be read in the same way, because with random crops a stream evaluates only a part of an image.
    """
    if config.input != "auto":
        return config
    fits = _gigabytes(source.num_examples(split, flag), _image_size(config, source)) <= MEMORY_SHARE * free_gigabytes()
    return dataclasses.replace(config, input="memory" if fits else "stream")


def read_like(config, kind):
    """Replaces --input=auto in a DataConfig by `kind` if that is "memory" or "stream"."""
    decides = config.input == "auto" and kind in ("memory", "stream")
    return dataclasses.replace(config, input=kind) if decides else config


def open_split(config, source, split, flag, log=print):
    """Opens `split` of a Source, the value of `flag`, as a ResidentSplit, DeviceSplit or StreamingSplit, with the same methods.

    Calls `log` with a line that says how the split is read, and with one about a cache file that cannot be used. Raises
    SettingError if the split does not exist, does not fit in memory, has images of different sizes without an --image_size, or
    cannot be padded as --crop_padding and --crop_border say; UnusableError if more examples than --max_bad_examples cannot be
    read or decoded (for a stream, only damaged records count).
    """
    num_examples = source.num_examples(split, flag)
    size = _image_size(config, source)
    config = decide_input(config, source, split, flag)
    if flag == "train_split":  # no other split is cropped
        _check_crop(config, size)
    classes = f"{len(source.class_names)} classes ({one_line(first_of(source.class_names))})"
    what = f"{split} of {source.name}: {num_examples} images of {size[0]} x {size[1]} in {classes}"
    what = f"{what}, {_gigabytes(num_examples, size):.2g} GB"
    if config.input != "stream":
        held = _decoded(config, source, split, flag, (num_examples, *size, 3), what, log)
        kind = DeviceSplit if config.input == "device" else resident.ResidentSplit
        return kind(held.images, held.labels, config.crop_padding, config.crop_border)
    log(f"{what}, as a stream")
    if size[0] != size[1]:
        remedy = f"a stream returns square images, those of {source.name} are {size[0]} x {size[1]}; give --image_size"
        raise SettingError("input", config.input, remedy)
    if config.max_bad_examples:
        source.skip_damaged(split)  # otherwise the stream would end at the first damaged record
        num_examples = source.num_examples(split, flag)
    margin = training_margin(size[0], config.augmentations)
    return StreamingSplit(source, split, num_examples, size[0], margin, config.decode_threads)


def _check_crop(config, size):
    """Raises SettingError if "crop" cannot pad images of `size` as a DataConfig says; a stream never pads."""
    if "crop" not in config.augmentations:
        return
    if config.input != "stream":
        resident.crop_padding(config.crop_padding, config.crop_border, *size)
        return
    for name, default in (("crop_padding", None), ("crop_border", "zeros")):
        if (value := getattr(config, name)) != default:
            remedy = "a stream cuts windows out of larger images and pads none; leave it out, or give --input=memory or device"
            raise SettingError(name, value, remedy)


def _decoded(config, source, split, flag, shape, what, log):
    """A ResidentSplit from the cache, or decoded and stored in the cache unless examples were skipped."""
    kept = cache.CachedSplit(cache.folder_of(config.cache_dir), source.name, split, shape, source.fingerprint(split))
    where = "on the device" if config.input == "device" else "in memory"
    found = kept.find(log)
    with contextlib.nullcontext(found) if found else kept.decoding(log) as found:
        log(f"{what}, {where}{', from cache' if found else ''}")
        if found:
            return resident.ResidentSplit(*found)
        if (gigabytes := _gigabytes(shape[0], shape[1:3])) > (free := free_gigabytes()):
            remedy = f"{split} takes {gigabytes:.3g} GB, {free:.3g} GB are free; give stream, or a smaller --image_size"
            raise SettingError("input", config.input, remedy)
        held = resident.load(source, split, shape[0], shape[1:3], config.decode_threads)
        if held.num_examples == shape[0]:
            # A cache that cannot be written is worth one line, not one for each split.
            kept.store(held.images, held.labels, log if flag == "train_split" else lambda line: None)
        return held


def _gigabytes(num_examples, size):
    return num_examples * math.prod(size) * 3 / 1e9


def _image_size(config, source):
    if config.image_size:
        return (config.image_size, config.image_size)
    if source.image_shape is None:
        remedy = f"the images of {source.name} have different sizes; give the size that the network should see, such as 224"
        raise SettingError("image_size", config.image_size, remedy)
    return source.image_shape[:2]
