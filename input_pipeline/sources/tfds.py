"""Data sets of TFDS by name: the embedded one and every image-classification set of the catalogue."""

import contextlib
import dataclasses
import difflib
import fcntl
import functools
import io
import os
import pathlib
import re
import socket
import sys
import tempfile
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
    try:
        builder = _prepared_builder(config)
    except UnusableError as error:
        if config.dataset != "shapes" or config.data_dir is not None:
            raise
        builder = _prepare_elsewhere(config, error)
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


def _prepared_builder(config):
    builder = _find_builder(config)
    _check_features(builder, config)
    builder = _prepare(builder, config)
    _check_features(builder, config)  # again, because the prepared data may differ from what the builder announces
    return builder


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
        folder = directory or tfds.core.constants.DATA_DIR
        raise UnusableError(f"--data_dir={folder}: {one_line_of(error)}; give a folder that can be read") from None
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
        if str(folder).startswith("~"):
            raise UnusableError(f"--data_dir: not given, and there is no home folder for {folder}; give a folder")
        folder.mkdir(parents=True, exist_ok=True)
        with _only_process(folder / f".{builder.name}.lock"):
            builder = _find_builder(config)  # another process may have prepared the data in the meantime
            if not builder.is_prepared():
                _check_network(builder, manual.parent)
                print(f"preparing {builder.name} {builder.version} in {builder.data_path}", file=sys.stderr)
                if not sys.stderr.isatty():
                    tfds.disable_progress_bar()
                download = tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False)
                # What TFDS prints is worth showing only if it downloads.
                with contextlib.redirect_stdout(sys.stderr if builder.url_infos else io.StringIO()):
                    builder.download_and_prepare(download_config=download)
            return builder
    except ExpectedError:
        raise
    except Exception as error:  # TFDS passes on whatever its downloads, readers and file systems raise
        remedy = f"put the prepared folder {builder.info.full_name} into {folder}, or give by --data_dir a folder that holds it "
        remedy += "or can be written"
        archives = sorted({info.filename for info in (builder.url_infos or {}).values() if info.filename})
        if archives or builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
            named = " and ".join(archives) if 0 < len(archives) <= 3 else "the archives that TFDS wants"
            remedy += f", or put {named} into {manual}"
        reason = f"{type(error).__name__}: {one_line_of(error)}"
        raise UnusableError(f"--dataset={config.dataset}: cannot be prepared in {folder} ({reason}); {remedy}") from None


def _prepare_elsewhere(config, error):
    """The builder of the embedded data set in a folder for temporary files, because the default folder cannot be used.

    Its data are the same in any folder. Raises `error`, which says why the default folder cannot be used, if this fails too.
    """
    try:
        folder = pathlib.Path(tempfile.gettempdir(), f"alexnet-{os.getuid()}")
        folder.mkdir(0o700, exist_ok=True)
        if folder.lstat().st_uid != os.getuid():  # somebody else could have put other data there
            raise error
        print(f"{tfds.core.constants.DATA_DIR} cannot be used; the embedded data set is in {folder}", file=sys.stderr)
        return _prepared_builder(dataclasses.replace(config, data_dir=str(folder)))
    except (OSError, ExpectedError):
        raise error from None


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
