"""What can be chosen about the data."""

import dataclasses

from input_pipeline.errors import SettingError
from input_pipeline.settings import Settings, setting

AUGMENTATIONS = ("crop", "flip")


@dataclasses.dataclass(frozen=True)
class DataConfig(Settings):
    """Data: where the images come from and how they reach the network."""

    dataset: str = setting("shapes", "shapes (embedded, drawn on first use) or the name of any TFDS image-classification set")
    data_dir: str | None = setting(None, "folder of prepared TFDS data; not given: ~/tensorflow_datasets")
    cache_dir: str | None = setting(
        None, "folder for decoded images, so that the next start need not decode; not given: $XDG_CACHE_HOME/alexnet, which is "
        "~/.cache/alexnet; empty: none"
    )
    train_split: str = setting("train[:90%]", "TFDS slicing syntax: the examples to train on")
    validation_split: str = setting(
        "train[90%:]", "the examples that early stopping and the best checkpoint look at; empty: none"
    )
    test_split: str = setting("test", "the examples judged once, by the best checkpoint, at the end; empty: none")
    image_size: int = setting(0, "height and width in pixels that the network sees; 0: the data's own", low=0, high=4096)
    pixels: str = setting(
        "standardized",
        "range of the network's input; standardized: per channel, measured on the training data",
        choices=("zero_one", "minus_one_one", "standardized"),
    )
    augment: str = setting(
        "none",
        "none, or a comma list of crop (random crop: of the image padded by an eighth; on a stream, of the image "
        "whose short side is 8/7 of --image_size) and flip (left-right, every second image)",
    )
    input: str = setting(
        "auto", "memory: all images decoded once; device: these on each device, which then cuts and flips, the host says where; "
        "stream: read again in each epoch; auto: memory if they fit in a quarter of it",
        choices=("auto", "memory", "device", "stream"),
    )
    decode_threads: int = setting(0, "threads of their own that images are decoded in; 0: one per core", low=0, high=1024)

    def __post_init__(self):
        super().__post_init__()
        unknown = [name for name in self.augmentations if name not in AUGMENTATIONS]
        if unknown:
            remedy = f"does not know {unknown[0]!r}; give none, or a comma list of {', '.join(AUGMENTATIONS)}"
            raise SettingError("augment", self.augment, remedy)
        if not self.dataset:
            raise SettingError("dataset", self.dataset, "give shapes or the name of a TFDS data set, such as cifar10")
        if not self.train_split:
            raise SettingError("train_split", self.train_split, "give the examples to train on, such as train[:90%]")

    @property
    def augmentations(self):
        """The chosen augmentations, a tuple of names."""
        return () if self.augment == "none" else tuple(name.strip() for name in self.augment.split(","))
