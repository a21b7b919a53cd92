"""What can be chosen about the data."""

import dataclasses
import difflib
import re

from input_pipeline.common.errors import SettingError
from input_pipeline.common.settings import Settings, setting

AUGMENTATIONS = ("crop", "flip", "random_resized_crop", "pca_color", "cutout", "mixup")
# The kinds of --dataset=KIND:..., and what follows the colon.
OWN_FILES = {"folder": "PATH", "npz": "PATH", "csv": "PATH", "tfrecord": "PATTERN"}


@dataclasses.dataclass(frozen=True)
class DataConfig(Settings):
    """Data: where the images come from and how they reach the network."""

    dataset: str = setting(
        "shapes", "shapes (embedded, drawn on first use), the name of any TFDS image-classification set, or your own files: "
        "folder:PATH (PATH/<split>/<class>/*.png or .jpg, or PATH/<class>/*, which is one split, train), npz:PATH (x_train, "
        "y_train, x_test, y_test), csv:PATH (columns image,label[,split]), tfrecord:PATTERN (features image, label)",
        on_resume="refuse",
    )
    data_dir: str | None = setting(None, "folder of prepared TFDS data; not given: ~/tensorflow_datasets", on_resume="ignore")
    cache_dir: str | None = setting(
        None, "folder for decoded images, so that the next start need not decode; not given: $XDG_CACHE_HOME/alexnet, which is "
        "~/.cache/alexnet; empty: none", on_resume="ignore",
    )
    train_split: str = setting("train[:90%]", "TFDS slicing syntax: the examples to train on", on_resume="refuse")
    validation_split: str = setting(
        "train[90%:]", "the examples that early stopping and the best checkpoint look at; empty: none", on_resume="refuse",
    )
    test_split: str = setting(
        "test", "the examples judged once, by the best checkpoint, at the end; empty: none",
        on_resume="refuse",
    )
    image_size: int = setting(
        0, "height and width in pixels that the network sees; 0: the data's own", low=0, high=4096,
        on_resume="refuse",
    )
    pixels: str = setting(
        "standardized",
        "range of the network's input; standardized: per channel, measured on the training data",
        choices=("zero_one", "minus_one_one", "standardized"), on_resume="refuse",
    )
    augment: str = setting(
        "none",
        "none, or a comma list of crop (random crop: of the image padded by an eighth; on a stream, of the image "
        "whose short side is 8/7 of --image_size) or random_resized_crop (8 to 100 % of the area, sides 3:4 to 4:3), flip "
        "(left-right, every second image), and in the compiled step pca_color (AlexNet's colour noise, sigma 0.1), cutout (a "
        "square of half the short side becomes the mean) and mixup (Beta(0.2, 0.2), of examples 2 i and 2 i + 1 of a batch)",
        on_resume="refuse",
    )
    input: str = setting(
        "auto", "memory: all images decoded once; device: these on each device, which then cuts and mirrors them, the host says "
        "where; stream: read again in each epoch; auto: memory if they fit in a fifth of it",
        choices=("auto", "memory", "device", "stream"), on_resume="ignore",
    )
    decode_threads: int = setting(
        0, "threads of their own that images are decoded in; 0: one per core", low=0, high=1024,
        on_resume="ignore",
    )
    max_bad_examples: int = setting(
        0, "how many examples that cannot be read or decoded are skipped, and listed in bad_examples.txt, before the run stops; "
        "with any, a stream reads its TFRecord files once at the start", low=0, on_resume="ignore",
    )

    def __post_init__(self):
        super().__post_init__()
        unknown = [name for name in self.augmentations if name not in AUGMENTATIONS]
        if unknown:
            remedy = f"does not know {unknown[0]!r}; give none, or a comma list of {', '.join(AUGMENTATIONS)}"
            raise SettingError("augment", self.augment, remedy)
        if {"crop", "random_resized_crop"} <= set(self.augmentations):
            raise SettingError("augment", self.augment, "crop and random_resized_crop exclude each other; give one of them")
        if not self.dataset:
            raise SettingError("dataset", self.dataset, "give shapes or the name of a TFDS data set, such as cifar10")
        self._check_own_files()
        if not self.train_split:
            raise SettingError("train_split", self.train_split, "give the examples to train on, such as train[:90%]")

    def _check_own_files(self):
        kind, path = self.own_files
        if kind and not path:
            raise SettingError("dataset", self.dataset, f"names no file; give {kind}:{OWN_FILES[kind]}")
        prefix, colon, _ = self.dataset.partition(":")
        close = difflib.get_close_matches(prefix.lower(), OWN_FILES, n=1)
        if colon and not kind and close:
            raise SettingError("dataset", self.dataset, f"no such kind of data; did you mean {close[0]}:{OWN_FILES[close[0]]}?")
        # TFDS would download its program and run it, from the config.json of somebody else's run, too.
        if not kind and re.match(r"[^/]*:[^\d*]", self.dataset):
            raise SettingError("dataset", self.dataset, "data sets that bring their own program are not opened; give one of TFDS")

    @property
    def own_files(self):
        """(kind, path) of a --dataset like folder:PATH; ("", "") of a name."""
        kind, colon, path = self.dataset.partition(":")
        return (kind, path) if colon and kind in OWN_FILES else ("", "")

    @property
    def augmentations(self):
        """The chosen augmentations, a tuple of names."""
        return () if self.augment == "none" else tuple(name.strip() for name in self.augment.split(","))
