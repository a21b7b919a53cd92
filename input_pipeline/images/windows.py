"""All windows of all images of a resident split, plain and mirrored, cut out by one gather."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from input_pipeline.common.batches import CORES

BLOCK_IMAGES = 1000


class Windows:
    """Images laid out so that any window of any padded image, or of its mirror image, is one index.

    The images lie behind each other in one array, with `padding` rows of zeros before the first row of each and `padding` zero
    pixels before each row. What follows a row is the border of the next one, so an image of 32 x 32 padded by 4 takes 36 x 36
    pixels, not 40 x 40. Mirror images follow the originals: to mirror is to choose another index; turning pixels round took
    most of the time before. NumPy copies a row of a window as one element of a type of that many bytes, which makes a gather
    of windows nearly as fast as one of whole images.

    Args:
      images: uint8 [n, height, width, 3].
      padding: zero pixels around each image, at most its height and width.
      flip: whether mirror images are wanted.
    """

    def __init__(self, images, padding=0, flip=False):
        count, height, width, _ = images.shape
        self._padding, self._count, self._shape = padding, count, images.shape[1:]
        self._pitch, self._slot = width + padding, (height + padding) * (width + padding)
        self._table = _lay_out(images, padding, flip) if padding or flip else np.ascontiguousarray(images)
        rows, pixels = (height, width) if padding else (1, height * width)
        # Of the pixels at which a window can start; the last one's ends with the table.
        starts = self._table.size // 3 - (rows - 1) * self._pitch - pixels + 1
        self._windows = np.ndarray((starts, rows), f"V{pixels * 3}", self._table, strides=(3, self._pitch * 3))

    def cut(self, index, top, left, mirrored):
        """One window of each image named.

        Args:
          index: of the images, int64 [b].
          top, left: where the window starts in the padded image, [b] in 0 to 2 * padding; it is mirrored after it is cut.
          mirrored: bool [b], all False without `flip`.

        Returns:
          uint8 [b, height, width, 3], a new array.
        """
        left = np.where(mirrored, 2 * self._padding - left, left)
        starts = (index + self._count * mirrored) * self._slot + top * self._pitch + left
        return self._windows[starts].view(np.uint8).reshape(-1, *self._shape)


def _lay_out(images, padding, flip):
    count, height, width, _ = images.shape
    # One more than there are images: the border below the last one.
    table = np.zeros(((1 + flip) * count + 1, height + padding, width + padding, 3), np.uint8)
    # Pixel by pixel, not byte by byte: more than twice as fast where they are turned round.
    pixels, places = (array.view("V3")[..., 0] for array in (np.ascontiguousarray(images), table))

    def fill(first):
        last = min(first + BLOCK_IMAGES, count)
        places[first:last, padding:, padding:] = pixels[first:last]
        if flip:
            places[count + first : count + last, padding:, padding:] = pixels[first:last, :, ::-1]

    with ThreadPoolExecutor(CORES) as pool:  # most of it is the first touch of fresh memory
        list(pool.map(fill, range(0, count, BLOCK_IMAGES)))
    return table
