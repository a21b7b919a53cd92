"""Reads the size of an image from its first bytes, so that a small file that claims a huge image is refused before decoding."""

import contextlib
import io
import struct

MAX_PIXELS = 2**26  # 200 MB decoded. The largest photos of usual data sets have 20 million pixels.
MAX_BYTES = 2**28  # of a file; so many pixels need no more, even without compression
_MOST_MARKERS = 2**16
# Start of frame: baseline, progressive, ...; C4, C8 and CC are tables and extensions.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length


def read_size(file):
    """(height, width) of the image in a binary file that can seek; None if its format is not decoded here.

    Formats: PNG (W3C), JPEG (ITU-T T.81), GIF89a, BMP, WebP (RFC 9649). Raises struct.error if the file ends in its header.
    """
    head = file.read(32)
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return struct.unpack(">II", head[16:24])[::-1]
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return struct.unpack("<HH", head[6:10])[::-1]
    if head[:2] == b"BM":
        width, height, _, bits = struct.unpack("<iiHH", head[18:30])
        # With fewer bits there is a palette, and TensorFlow would take its indices for grey values.
        return (abs(height), abs(width)) if bits in (24, 32) else None
    if head[:2] == b"\xff\xd8":
        file.seek(2)
        return _jpeg_size(file)
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP" or len(head) < 30:
        return None
    kind, bits = head[12:16], int.from_bytes(head[21:25], "little")
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[27:30], "little"), 1 + int.from_bytes(head[24:27], "little")
    if kind == b"VP8L":
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    width, height = struct.unpack("<HH", head[26:30])
    return (height & 0x3FFF, width & 0x3FFF) if kind == b"VP8 " else None


def common_shape(openers):
    """(height, width, 3) if all images that `openers` open state one size, else None. Ignores what `check` would refuse."""
    sizes = set()
    for opener in openers:
        with contextlib.suppress(OSError, struct.error), opener() as file:
            size = read_size(file)
            if size and 0 < size[0] * size[1] <= MAX_PIXELS:
                sizes.add(size)
        if len(sizes) > 1:
            return None
    return (*sizes.pop(), 3) if sizes else None


def check(encoded):
    """Why encoded bytes must not be decoded, by their header alone; empty if there is no reason."""
    try:
        size = read_size(io.BytesIO(encoded))
        frames = _gif_pixels(encoded) if encoded[:3] == b"GIF" else 0
    except (struct.error, IndexError):
        size = None
    if size is None:
        return "is damaged at its beginning or no PNG, JPEG, BMP (24 or 32 bits), GIF or WebP" if encoded else "is empty"
    height, width = size
    if not height or not width:
        return f"claims {width} x {height} pixels"
    if height * width > MAX_PIXELS:
        return f"is huge: {width} x {height} pixels, the limit is {MAX_PIXELS} in all"
    if frames > MAX_PIXELS:
        return f"is huge: its frames have {frames} pixels in all, the limit is {MAX_PIXELS}"
    return ""


def _gif_pixels(content):
    """The pixels of all frames of a GIF. TensorFlow decodes all frames before it returns the first."""
    def palette_bytes(flags):
        return 3 * 2 ** (1 + (flags & 7)) if flags & 128 else 0

    pixels, position = 0, 13 + palette_bytes(content[10])
    while (kind := content[position : position + 1]) in (b"!", b","):
        if kind == b",":
            width, height, flags = struct.unpack("<4xHHB", content[position + 1 : position + 10])
            pixels += width * height
            position += 9 + palette_bytes(flags)
        position += 2
        while content[position]:  # blocks of data, each after its length; the last one is empty
            position += 1 + content[position]
        position += 1
    return pixels


def _jpeg_size(file):
    """Skips from marker to marker until the start of a frame."""
    for _ in range(_MOST_MARKERS):
        mark, byte = file.read(1), file.read(1)
        if mark != b"\xff" or not byte:
            return None
        if byte == b"\xff":  # a fill byte, of which there may be any number
            file.seek(-1, io.SEEK_CUR)
        elif byte[0] not in _JPEG_BARE:
            length = int.from_bytes(file.read(2), "big")
            if byte[0] in _JPEG_FRAMES:
                return struct.unpack(">xHH", file.read(5))
            if length < 2:
                return None
            file.seek(length - 2, io.SEEK_CUR)
    return None
