"""The settings about data. Imports no TensorFlow, because flags are checked before TensorFlow is imported."""

import dataclasses
import difflib
import glob
import os
import re

from input_pipeline.common.errors import SettingError
from input_pipeline.common.settings import Settings, setting

AUGMENTATIONS = (
    "crop", "random_resized_crop", "flip", "alternating_flip", "rand_augment", "pca_color", "cutout", "random_erasing", "mixup",
    "cutmix",
)
OF_AUGMENTATIONS = {"crop": ("crop_padding", "crop_border"), "rand_augment": ("rand_augment",)}  # their settings
EXCLUDE_EACH_OTHER = (("crop", "random_resized_crop"), ("flip", "alternating_flip"), ("mixup", "cutmix"))
# The kinds of --dataset=KIND:..., and what follows the colon.
OWN_FILES = {"folder": "PATH", "npz": "PATH", "csv": "PATH", "tfrecord": "PATTERN"}
# The endings, in any case, of the images that are looked for in folders; a file that is named itself may end otherwise.
IMAGE_FILES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif")
CLASS_NAMES = "class_names.txt"  # next to TFRecord files: the names of the classes, one per line


@dataclasses.dataclass(frozen=True)
class DataConfig(Settings):
    """Data: where the images come from and how they reach the network."""

    dataset: str = setting(
        "shapes", "shapes (embedded, drawn on first use), the name of any TFDS image-classification set, or your own files: "
        "folder:PATH (PATH/<split>/<class>/*.png, .jpg, ..., or PATH/<class>/*, which is one split, train), npz:PATH (x_train, "
        "y_train, x_test, y_test), csv:PATH (columns image,label[,split]), tfrecord:PATTERN (features image, label)",
        on_resume="refuse")
    data_dir: str | None = setting(
        None, "folder of prepared TFDS data; if not given, ~/tensorflow_datasets", on_resume="ignore")
    cache_dir: str | None = setting(
        None, "folder for decoded images, which makes the next start faster; if not given, $XDG_CACHE_HOME/alexnet or "
        "~/.cache/alexnet; empty: no cache", on_resume="ignore")
    train_split: str = setting("train[:90%]", "examples to train on, in TFDS slicing syntax", on_resume="refuse")
    validation_split: str = setting(
        "train[90%:]", "examples that early stopping and the choice of the best checkpoint use; empty: none", on_resume="refuse")
    test_split: str = setting(
        "test", "examples that the best checkpoint is evaluated on once, at the end; empty: none", on_resume="refuse")
    image_size: int = setting(
        0, "height and width of the network's input in pixels; 0: the size of the data", low=0, high=4096, on_resume="refuse")
    pixels: str = setting(
        "standardized", "range of the network's input; standardized: per channel, measured on the training data",
        choices=("zero_one", "minus_one_one", "standardized"), on_resume="refuse")
    augment: str = setting(
        "none", "none, or a comma list of crop (random crop of the image padded by --crop_padding; on a stream, of the image "
        "whose short side is 8/7 of --image_size) or random_resized_crop (8 to 100 % of the area, sides 3:4 to 4:3), flip "
        "(left-right, a random half of the images) or alternating_flip (a random half in the first epoch, and in every second "
        "epoch the others), and in the compiled step rand_augment, pca_color (AlexNet's colour noise, sigma 0.1), cutout (a "
        "square of half the short side becomes the mean), random_erasing (a rectangle of half of the images becomes noise), "
        "mixup (Beta(0.2, 0.2), of examples 2 i and 2 i + 1 of a batch) or cutmix (a rectangle from the partner, Beta(1, 1))",
        on_resume="refuse")
    crop_padding: int | None = setting(
        None, "pixels that crop adds on each side; not given: an eighth of the height", low=0, high=512, on_resume="refuse")
    crop_border: str = setting(
        "zeros", "what crop adds: zeros, or the reflected image", choices=("zeros", "reflect"), on_resume="refuse")
    rand_augment: str = setting(
        "2,9", "LAYERS,MAGNITUDE of the augmentation rand_augment: how many operations per image, 1 or more, and how strong they "
        "are, 0 to 10", on_resume="refuse")
    input: str = setting(
        "auto", "memory: decode all images once and keep them in memory; device: keep them in the memory of each device, which "
        "crops and flips them; stream: read and decode them in every epoch; auto: memory if they fit in a fifth of it, or stream",
        choices=("auto", "memory", "device", "stream"), on_resume="ignore")
    decode_threads: int = setting(0, "threads that only decode images; 0: one per core", low=0, high=1024, on_resume="ignore")
    max_bad_examples: int = setting(
        0, "how many examples that cannot be read or decoded are skipped, and listed in bad_examples.txt, before the run stops; "
        "if not 0, a stream reads its TFRecord files once at the start", low=0, on_resume="ignore")

    def __post_init__(self):
        super().__post_init__()
        if unknown := [name for name in self.augmentations if name not in AUGMENTATIONS]:
            remedy = f"there is no augmentation {unknown[0]!r}; give none, or a comma list of {', '.join(AUGMENTATIONS)}"
            raise SettingError("augment", self.augment, remedy)
        for pair in EXCLUDE_EACH_OTHER:
            if set(pair) <= set(self.augmentations):
                raise SettingError("augment", self.augment, f"{pair[0]} and {pair[1]} exclude each other; give one of them")
        self.rand_augment_layers_and_magnitude()
        if not self.dataset:
            raise SettingError("dataset", self.dataset, "give shapes or the name of a TFDS data set, such as cifar10")
        kind, path = self.own_files
        if kind and not path:
            raise SettingError("dataset", self.dataset, f"names no file; give {kind}:{OWN_FILES[kind]}")
        prefix, colon, _ = self.dataset.partition(":")
        close = difflib.get_close_matches(prefix.lower(), OWN_FILES, n=1)
        if colon and not kind and close:
            raise SettingError("dataset", self.dataset, f"no such kind of data; did you mean {close[0]}:{OWN_FILES[close[0]]}?")
        # TFDS would download a program and run it, even if the name comes from the config.json of somebody else's run.
        if not kind and re.match(r"[^/]*:[^\d*]", self.dataset):
            raise SettingError("dataset", self.dataset, "data sets that bring their own program are not opened; give one of TFDS")
        if not self.train_split:
            raise SettingError("train_split", self.train_split, "give the examples to train on, such as train[:90%]")

    def rand_augment_layers_and_magnitude(self):
        """(layers, magnitude) of --rand_augment, an int and a float."""
        layers, comma, magnitude = (part.strip() for part in self.rand_augment.partition(","))
        is_number = re.fullmatch(r"\d{1,2}(\.\d{1,6})?", magnitude, re.ASCII)
        if not (comma and re.fullmatch(r"[1-9]|1\d", layers, re.ASCII) and is_number and float(magnitude) <= 10):
            remedy = "give LAYERS,MAGNITUDE, a whole number from 1 to 19 and a number from 0 to 10, such as 2,9"
            raise SettingError("rand_augment", self.rand_augment, remedy)
        return int(layers), float(magnitude)

    @property
    def own_files(self):
        """(kind, path) of a --dataset such as folder:PATH; ("", "") if it is the name of a data set."""
        kind, colon, path = self.dataset.partition(":")
        return (kind, path) if colon and kind in OWN_FILES else ("", "")

    @property
    def augmentations(self):
        """The chosen augmentations, a tuple of names."""
        return parse_augmentations(self.augment)


def parse_augmentations(text):
    """The names in --augment, a tuple."""
    return () if text == "none" else tuple(name.strip() for name in text.split(","))


def check_own_files(config):
    """Raises SettingError if the user's own folder, file or pattern in a DataConfig does not exist or is of another kind."""
    kind, path = config.own_files
    path = os.path.expanduser(path)
    remedy = ""
    if kind == "folder" and os.path.isfile(path):
        remedy = "is a file; give the folder that contains the splits or classes (unpack an archive first)"
    elif kind == "folder" and not os.path.isdir(path):
        remedy = "there is no such folder; give folder:PATH of one that exists"
    elif kind in ("npz", "csv") and os.path.isdir(path):
        inside = sorted(name for name in os.listdir(path) if name.lower().endswith(f".{kind}"))
        remedy = f"is a folder; give the file, such as {kind}:{os.path.join(path, inside[0] if inside else f'data.{kind}')}"
    elif kind in ("npz", "csv") and not os.path.isfile(path):
        remedy = f"there is no such file; give {kind}:PATH of one that exists"
    elif kind == "tfrecord" and os.path.isdir(path):
        remedy = f"is a folder; give a PATTERN of its files, such as tfrecord:'{os.path.join(path, '*.tfrecord*')}'"
    elif kind == "tfrecord" and not matching_files(path):
        remedy = "no file matches; give a PATTERN, such as tfrecord:'data/*.tfrecord'"
    if remedy:
        raise SettingError("dataset", config.dataset, remedy)


def is_hidden(name):
    """Whether a file or folder is left out of any folder: hidden, or what macOS adds to an archive."""
    return name.startswith(".") or name == "__MACOSX"


def matching_files(pattern):
    """The files that match the pattern of --dataset=tfrecord:PATTERN, sorted by name."""
    found = glob.glob(pattern, recursive=True)
    return sorted(path for path in found if os.path.isfile(path) and os.path.basename(path) != CLASS_NAMES)
