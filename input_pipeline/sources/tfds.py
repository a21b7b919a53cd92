"""Data sets of TFDS by name: the embedded one and every image-classification set of the catalogue."""

import contextlib
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
from input_pipeline.sources import shapes
from input_pipeline.sources.base import RecordFiles

CONNECT_SECONDS = 5


def open_source(config, _, bad):
    """Opens the data set that a DataConfig names, and prepares it first if necessary.

    Raises SettingError if it does not exist or is not for image classification, UnusableError if it cannot be downloaded.
    """
    builder = _find_builder(config)
    _check_features(builder, config)
    builder = _prepare(builder, config)
    _check_features(builder, config)  # again, because the prepared data may differ from what the builder announces
    if builder.info.file_format and builder.info.file_format.value != "tfrecord":
        remedy = "is prepared in another format than TFRecord; prepare it again, as TFDS does by default"
        raise UnusableError(f"--dataset={config.dataset}: {builder.data_path} {remedy}")
    height, width, _ = builder.info.features["image"].shape
    shape = (height, width, 3) if height and width else None
    # The other features of an example, if there are any, are not parsed.
    features = tfds.features.FeaturesDict({name: builder.info.features[name] for name in ("image", "label")})
    parse = functools.partial(features.deserialize_example, decoders={"image": tfds.decode.SkipDecoding()})
    files = {name: [(part.filename, part.take) for part in info.file_instructions] for name, info in builder.info.splits.items()}
    return RecordFiles(config.dataset, tuple(builder.info.features["label"].names), shape, files, parse, bad=bad)


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
    except Exception as error:  # TFDS passes on whatever its parsers, importers and readers raise
        known = ["shapes", *tfds.list_builders()]
        name = re.split("[:/]", config.dataset)[0].lower()
        if name in known or isinstance(error, ImportError):
            raise SettingError("dataset", config.dataset, f"TFDS cannot open it: {one_line_of(error)}") from None
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "give shapes or a name from the TFDS catalogue"
        raise SettingError("dataset", config.dataset, f"no such data set; {hint}") from None


def _prepare(builder, config):
    """Returns the builder of the prepared data. One process prepares it while others wait. Writes nothing if it is prepared."""
    if builder.is_prepared():
        return builder
    folder = pathlib.Path(builder.data_dir_root)
    manual = folder / "downloads" / "manual"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _only_process(folder / f".{builder.name}.lock"):
            builder = _find_builder(config)  # another process may have prepared the data in the meantime
            if not builder.is_prepared():
                _check_network(builder, manual.parent)
                print(f"preparing {builder.name} {builder.version} in {builder.data_path}", file=sys.stderr)
                if not sys.stderr.isatty():
                    tfds.disable_progress_bar()
                download = tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False)
                with contextlib.redirect_stdout(sys.stderr):
                    builder.download_and_prepare(download_config=download)
            return builder
    except ExpectedError:
        raise
    except Exception as error:  # TFDS passes on whatever its downloads, readers and file systems raise
        remedy = f"put the prepared folder {builder.info.full_name} into {folder}, or give the folder that holds it by --data_dir"
        archives = sorted({info.filename for info in (builder.url_infos or {}).values() if info.filename})
        if archives or builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
            named = " and ".join(archives) if 0 < len(archives) <= 3 else "the archives that TFDS wants"
            remedy += f", or put {named} into {manual}"
        reason = f"{type(error).__name__}: {one_line_of(error)}"
        raise UnusableError(f"--dataset={config.dataset}: cannot be prepared in {folder} ({reason}); {remedy}") from None


def _check_network(builder, downloads):
    """Raises ConnectionError if no host of the data can be reached. TFDS itself would retry for over three minutes.

    Does nothing if there are files in `downloads`, which may be all that TFDS needs, or if there is a proxy.
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


@contextlib.contextmanager
def _only_process(lock_path):
    with open(lock_path, "w") as lock:  # the lock ends with the process, however that ends; the file stays
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that prepares data ({lock_path})", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
