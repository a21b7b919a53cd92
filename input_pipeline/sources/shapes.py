"""The embedded data set `shapes`: ten flat shapes, 32x32 colour images, drawn here, never downloaded.

Each image shows one shape of random colour, size, place, rotation and stretch on a colour gradient with a few thin lines and
dots, under noise. The label is the outline and nothing else. Colours, size and place have the same distributions for all ten
classes, and all shapes cover the same area at equal size, so neither colours nor place reveal the class. Every outline has an
axis of symmetry and is rotated freely, so horizontal and vertical flips keep the label.

Image `index` of a split is a function of (split, index) alone, and its label is `index % 10`. TFDS stores the records of a split
in an order of its own, by a hash of the index.
"""

import numpy as np
import tensorflow_datasets as tfds

IMAGE_SIZE = 32
SPLIT_SIZES = {"train": 5_000, "test": 1_000}

# Pixel centres, [32, 32] each: y grows downwards.
_PIXEL_Y, _PIXEL_X = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE] + 0.5


# Outlines. The x axis is the axis of symmetry, so each function takes points (x, y) of the half plane y >= 0 only. It returns
# their distance to the outline, negative inside. The distance is exact next to straight and round edges and approximate around
# corners, which is enough for anti-aliasing.


def _star(x, y):
    """Five tips at radius 1, notches at radius 0.45."""
    sector = 2 * np.pi / 5
    angle_from_tip = np.abs((np.arctan2(y, x) + sector / 2) % sector - sector / 2)
    radius = np.hypot(x, y)
    tip_x, notch_x, notch_y = 1.0, 0.45 * np.cos(sector / 2), 0.45 * np.sin(sector / 2)
    edge_x, edge_y = notch_x - tip_x, notch_y
    from_tip_x, from_tip_y = radius * np.cos(angle_from_tip) - tip_x, radius * np.sin(angle_from_tip)
    return (from_tip_x * edge_y - from_tip_y * edge_x) / np.hypot(edge_x, edge_y)


def _cross(x, y):
    long, short = 1.0, 0.33
    x = np.abs(x)
    return np.minimum(np.maximum(x - long, y - short), np.maximum(x - short, y - long))


def _heart(x, y):
    """A lobe of radius 0.5 on each side of the axis; its tangent ends in the point at x = -1."""
    lobe_x, lobe_y, radius, notch_x = 0.4, 0.5, 0.5, 0.45
    # The axis is the other tangent of the lobe through that point, so the line to the centre of the lobe halves the angle.
    angle = 2 * np.arctan2(lobe_y, lobe_x + 1.0)
    beyond_tangent = np.cos(angle) * y - np.sin(angle) * (x + 1.0)
    beyond_lobe = np.cos(angle) * (x - lobe_x) + np.sin(angle) * (y - lobe_y)
    body = np.maximum(np.maximum(beyond_tangent, beyond_lobe), x - notch_x)
    return np.minimum(body, np.hypot(x - lobe_x, y - lobe_y) - radius)


def _arrow(x, y):
    shaft = np.maximum(np.abs(x + 0.4) - 0.6, y - 0.2)
    head = np.maximum(-x, (x + y - 1.0) / np.sqrt(2))
    return np.minimum(shaft, head)


# Each outline, and the factor that gives it the area pi (that of the disk), counted on a grid of 4000 x 4000 points.
_SHAPES = {
    "disk": (lambda x, y: np.hypot(x, y) - 1.0, 1.0),
    "ring": (lambda x, y: np.abs(np.hypot(x, y) - 0.75) - 0.25, 1.1547),
    "triangle": (lambda x, y: np.maximum(-x, 0.5 * x + np.sqrt(0.75) * y) - 0.5, 1.5551),
    "square": (lambda x, y: np.maximum(np.abs(x), y) - 1.0, 0.8862),
    "star": (_star, 1.5413),
    "cross": (_cross, 1.1938),
    "crescent": (lambda x, y: np.maximum(np.hypot(x - 0.4, y) - 1.0, 0.8 - np.hypot(x - 0.4 - 0.5, y)), 1.4332),
    "heart": (_heart, 1.1545),
    "arrow": (_arrow, 1.4985),
    "hourglass": (lambda x, y: np.maximum(np.abs(x) - 1.0, 0.8 * (y - 0.75 * np.abs(x) - 0.08)), 1.3138),
}
CLASS_NAMES = tuple(_SHAPES)


def coverage(distance):
    """The share of a pixel that is inside, 0 to 1, given the signed distance of its centre in pixels."""
    return np.clip(0.5 - distance, 0.0, 1.0)


def shape_mask(class_name, center, radius, rotation, stretch=1.0):
    """Anti-aliased silhouette of a class: the share of each pixel that the shape covers, float64 [32, 32], 0 to 1.

    `center` is (x, y) in pixels from the upper left corner, `radius` that of a disk of the same area, in pixels, and `rotation`
    that of the axis of symmetry, in radians. `stretch` is the factor along this axis. Across it, the shape shrinks by as much.
    """
    outline, scale_to_area = _SHAPES[class_name]
    dx, dy = _PIXEL_X - center[0], _PIXEL_Y - center[1]
    cosine, sine = np.cos(rotation), np.sin(rotation)
    along, across = cosine * dx + sine * dy, np.abs(cosine * dy - sine * dx)
    scale = radius * scale_to_area
    return coverage(scale * outline(along / (scale * stretch), across * stretch / scale))


def _paint(canvas, mask, color):
    """Blends `color` [3] over `canvas` [32, 32, 3]; where `mask` [32, 32] is 1, only the colour remains."""
    return canvas + mask[..., np.newaxis] * (color - canvas)


def _background(rng):
    """A gradient at a random angle between two similar random colours: image [32, 32, 3], colours [2, 3]."""
    colors = rng.uniform(size=3) + rng.uniform(-0.2, 0.2, size=(2, 3))
    angle = rng.uniform(0, 2 * np.pi)
    ramp = (np.cos(angle) * _PIXEL_X + np.sin(angle) * _PIXEL_Y) / IMAGE_SIZE
    ramp = (ramp - ramp.min()) / (ramp.max() - ramp.min())
    colors = colors.clip(0.0, 1.0)
    return _paint(np.broadcast_to(colors[0], (IMAGE_SIZE, IMAGE_SIZE, 3)), ramp, colors[1]), colors


def _clutter(rng, canvas):
    """Draws up to two thin lines and up to four dots of random colours, the dots smaller than any shape."""
    for _ in range(rng.integers(0, 3)):
        angle, offset = rng.uniform(0, np.pi), rng.uniform(-14, 14)
        distance = np.cos(angle) * (_PIXEL_X - 16) + np.sin(angle) * (_PIXEL_Y - 16) - offset
        canvas = _paint(canvas, coverage(np.abs(distance) - rng.uniform(0.3, 0.7)), rng.uniform(size=3))
    for _ in range(rng.integers(0, 5)):
        x, y = rng.uniform(0, IMAGE_SIZE, size=2)
        distance = np.hypot(_PIXEL_X - x, _PIXEL_Y - y)
        canvas = _paint(canvas, coverage(distance - rng.uniform(0.5, 1.3)), rng.uniform(size=3))
    return canvas


def draw_example(split, index):
    """Draws image `index`, at least 0, of the split "train" or "test": uint8 [32, 32, 3], and its label, an int."""
    rng = np.random.Generator(np.random.Philox([list(SPLIT_SIZES).index(split), index]))  # no two splits share random numbers
    label = index % len(CLASS_NAMES)
    canvas, background_colors = _background(rng)
    canvas = _clutter(rng, canvas)
    # Choose the candidate that is furthest from both ends of the gradient, for contrast without preferring a colour.
    candidates = rng.uniform(size=(10, 3))
    contrast = np.linalg.norm(candidates[:, np.newaxis] - background_colors, axis=-1).min(axis=-1)
    radius = rng.uniform(6.0, 8.5)
    # The range of places depends on the size alone. If it depended on the outline, the place would reveal the class.
    center = IMAGE_SIZE / 2 + rng.uniform(-1, 1, size=2) * (14.5 - 1.35 * radius)
    mask = shape_mask(CLASS_NAMES[label], center, radius, rng.uniform(0, 2 * np.pi), rng.uniform(0.93, 1.07))
    canvas = _paint(canvas, mask, candidates[contrast.argmax()])
    canvas = canvas + rng.normal(scale=rng.uniform(0.0, 0.04), size=canvas.shape)
    return np.rint(canvas.clip(0.0, 1.0) * 255).astype(np.uint8), label


class Shapes(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of `shapes`: 5,000 training and 1,000 test images, ten balanced classes.

    Preparing needs no network. But TFDS looks for a prepared copy online, unless you call
    `download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))`.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}

    def _info(self):
        image = tfds.features.Image(shape=(IMAGE_SIZE, IMAGE_SIZE, 3), encoding_format="png")
        features = tfds.features.FeaturesDict({"image": image, "label": tfds.features.ClassLabel(names=CLASS_NAMES)})
        return tfds.core.DatasetInfo(builder=self, description=__doc__, features=features, supervised_keys=("image", "label"))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in SPLIT_SIZES}

    def _generate_examples(self, split):
        for index in range(SPLIT_SIZES[split]):
            image, label = draw_example(split, index)
            yield index, {"image": image, "label": label}
