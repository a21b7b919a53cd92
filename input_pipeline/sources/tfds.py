"""Data sets that TFDS reads: the embedded one and every image-classification set of the catalogue, by name."""

import contextlib
import dataclasses
import difflib
import fcntl
import functools
import os
import pathlib
import re
import socket
import sys
import urllib.parse
import urllib.request

import tensorflow as tf
import tensorflow_datasets as tfds

from input_pipeline.common.errors import ExpectedError, SettingError, UnusableError, one_line_of
from input_pipeline.images.bad_examples import BadExamples
from input_pipeline.sources import shapes
from input_pipeline.sources.base import RecordFiles, Stretch

CONNECT_SECONDS = 5


@dataclasses.dataclass(frozen=True)
class TfdsSource(RecordFiles):
    """A prepared data set of TFDS.

    Attributes:
      builder: the TFDS builder that reads it.
    """

    builder: tfds.core.DatasetBuilder

    def split_sizes(self):
        """{name of a split: how many examples it has}."""
        return {name: info.num_examples for name, info in self.builder.info.splits.items()}

    def stretches(self, split):
        """The Stretches of TFDS's files that make up `split`."""
        instructions = self.builder.info.splits[split].file_instructions
        return [Stretch(instruction.filename, instruction.skip, instruction.take) for instruction in instructions]

    def parse(self, record):
        """A serialized example -> {"image": encoded bytes, "label": int64}."""
        return self._image_and_label.deserialize_example(record, decoders={"image": tfds.decode.SkipDecoding()})

    @functools.cached_property
    def _image_and_label(self):
        # The other features of an example, if there are any, stay unread.
        return tfds.features.FeaturesDict({name: self.builder.info.features[name] for name in ("image", "label")})


def open_tfds(config):
    """Opens the data set that a DataConfig names, and prepares it first where that was not done yet.

    Raises:
      SettingError: no such data set, or not one of images with one label each.
      UnusableError: it can be neither found prepared nor downloaded.
    """
    builder = _find_builder(config)
    _check_features(builder, config)
    builder = _prepare(builder, config)
    _check_features(builder, config)  # once more: what was prepared may differ from what the code announced
    if builder.info.file_format and builder.info.file_format.value != "tfrecord":
        remedy = "is prepared in another format than TFRecord; prepare it again, as TFDS does by default"
        raise UnusableError(f"--dataset={config.dataset}: {builder.data_path} {remedy}")
    height, width, _ = builder.info.features["image"].shape
    shape = (height, width, 3) if height and width else None
    names = tuple(builder.info.features["label"].names)
    return TfdsSource(config.dataset, names, shape, builder, bad=BadExamples(config.max_bad_examples))


def _check_features(builder, config):
    features = builder.info.features
    has_both = isinstance(features, tfds.features.FeaturesDict) and {"image", "label"} <= set(features)
    image, label = (features["image"], features["label"]) if has_both else (None, None)
    of_bytes = isinstance(image, tfds.features.Image) and image.tf_dtype == tf.uint8
    if not of_bytes or not isinstance(label, tfds.features.ClassLabel):
        remedy = "has no feature `image` of 8-bit pixels with one class `label`; give an image-classification set, like cifar10"
        raise SettingError("dataset", config.dataset, remedy)


def _find_builder(config):
    directory = None if config.data_dir is None else os.path.expanduser(config.data_dir)
    try:
        if config.dataset == "shapes":
            return shapes.Shapes(data_dir=directory)
        return tfds.builder(config.dataset, data_dir=directory, try_gcs=False)
    except OSError as error:
        raise UnusableError(f"--data_dir={config.data_dir}: {one_line_of(error)}; give a folder that can be read") from None
    except Exception as error:  # TFDS raises whatever its parsers, importers and readers raise
        known = ["shapes", *tfds.list_builders()]
        name = re.split("[:/]", config.dataset)[0].lower()
        if name in known or isinstance(error, ImportError):
            raise SettingError("dataset", config.dataset, f"TFDS cannot open it: {one_line_of(error)}") from None
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "give shapes or a name from the TFDS catalogue"
        raise SettingError("dataset", config.dataset, f"no such data set; {hint}") from None


def _prepare(builder, config):
    """Returns the builder of prepared data. One process prepares while any other waits; a prepared folder is only read."""
    if builder.is_prepared():
        return builder
    folder = pathlib.Path(builder.data_dir_root)
    manual = folder / "downloads" / "manual"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _only_process(folder / f".{builder.name}.lock"):
            builder = _find_builder(config)  # another process may have prepared it in the meantime
            if not builder.is_prepared():
                _check_network(builder, manual.parent)
                _download_and_prepare(builder, manual)
            return builder
    except ExpectedError:
        raise
    except Exception as error:  # TFDS raises whatever its downloads, readers and file systems raise
        remedy = f"put the prepared folder {builder.info.full_name} into {folder}, or give the folder that holds it by --data_dir"
        archives = sorted({info.filename for info in (builder.url_infos or {}).values() if info.filename})
        if archives or builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
            named = " and ".join(archives) if 0 < len(archives) <= 3 else "the archives that TFDS wants"
            remedy += f", or put {named} into {manual}"
        reason = f"{type(error).__name__}: {one_line_of(error)}"
        raise UnusableError(f"--dataset={config.dataset}: cannot be prepared in {folder} ({reason}); {remedy}") from None


def _check_network(builder, downloads):
    """Raises ConnectionError where no host of the data can be reached: TFDS tries again for over three minutes.

    Files that lie in `downloads` may be all that TFDS needs, and a proxy may reach what we do not see: TFDS finds out.
    """
    urls = [urllib.parse.urlsplit(url) for url in builder.url_infos or {}]
    hosts = sorted({(url.hostname, url.port or {"http": 80, "https": 443}.get(url.scheme)) for url in urls})
    has_files = any(path.is_file() for path in downloads.rglob("*"))
    if not hosts or has_files or urllib.request.getproxies() or None in (port for _, port in hosts):
        return
    for address in hosts[:3]:
        try:
            socket.create_connection(address, timeout=CONNECT_SECONDS).close()
            return
        except OSError as error:
            failure = error
    raise ConnectionError(f"no network connection to {address[0]}: {failure}")


def _download_and_prepare(builder, manual):
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    print(f"preparing {builder.name} {builder.version} in {builder.data_path}", file=sys.stderr)
    download = tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False)
    with contextlib.redirect_stdout(sys.stderr):
        builder.download_and_prepare(download_config=download)


@contextlib.contextmanager
def _only_process(lock_path):
    with open(lock_path, "w") as lock:  # the lock goes with its process, however that ends; the file may stay
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that prepares data ({lock_path})", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
