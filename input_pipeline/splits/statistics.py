"""What is measured on the training images besides mean and deviation."""

import numpy as np


def covariance(parts):
    """Covariance of the channels over all pixels of all parts.

    Args:
      parts: iterable of uint8 [..., 3], which together have one pixel at least.

    Returns:
      float64 [3, 3], divided by the number of pixels. The sums are exact below 2**53, that is for 10**11 pixels.
    """
    products, totals, count = np.zeros((3, 3)), np.zeros(3), 0
    for part in parts:
        pixels = part.reshape(-1, 3).astype(np.float64)
        products += pixels.T @ pixels
        totals += pixels.sum(axis=0)
        count += len(pixels)
    return products / count - np.outer(totals, totals) / count**2
