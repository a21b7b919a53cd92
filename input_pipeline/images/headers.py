"""Reads the size of an image from its first bytes, so that a small file that claims a huge image is refused before decoding.

Reads its orientation too. A camera that was held sideways stores the picture as its sensor saw it, and states in EXIF how to turn
it. `orientation.py` turns it, and reads the same with TensorFlow's operations only.
"""

import contextlib
import io
import struct

MAX_PIXELS = 2**26  # 200 MB decoded. The largest photos of usual data sets have 20 million pixels.
MAX_BYTES = 2**28  # of a file; so many pixels need no more, even without compression
_MOST_MARKERS = 2**16
# Start of frame: baseline, progressive, ...; C4, C8 and CC are tables and extensions.
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length

EXIF = b"Exif\0\0"  # EXIF begins with this in a JPEG, and often in other files
EXIF_WITHIN = 2**18  # bytes; in a JPEG, EXIF that begins later is not found. It is the first segment, or follows a few of 64 kB.
MOST_PARTS = 2**12  # of a file that are passed over in search of EXIF; a PNG of 32 MB usually has so many
MOST_EXIF_BYTES = 2**16  # that are read; a segment of a JPEG cannot hold more
MOST_ENTRIES = 256  # of a table in EXIF that are read; cameras write about a dozen
ORIENTATION_TAG = 0x0112


def read_size(file):
    """(height, width) of the upright image in a binary file that can seek; None if its format is not decoded here.

    Formats: PNG (W3C), JPEG (ITU-T T.81), GIF89a, BMP, WebP (RFC 9649). Raises struct.error if the file ends in its header.
    """
    size = _stored_size(file)
    # A square remains as it is, so it need not be searched for EXIF, which may be at the end of a PNG.
    return size[::-1] if size and size[0] != size[1] and read_orientation(file) > 4 else size


def _stored_size(file):
    file.seek(0)
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


def read_orientation(file):
    """How the image in a binary file that can seek must be turned: EXIF's orientation, 1 (upright) to 8.

    Returns 1 if the file states none, or if its EXIF is malformed. EXIF is in a segment APP1 of a JPEG, before the frame, in a
    chunk eXIf of a PNG, or in a chunk EXIF of a WebP file (RFC 9649, section 2.7.1.5). The first counts if there are several.
    """
    file.seek(0)
    head = file.read(21)
    if head[:2] == b"\xff\xd8":
        return _orientation_in(_jpeg_exif(file))
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return _orientation_in(_chunk(file, 8, b"eXIf"))
    if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and head[20:] and head[20] & 8:  # the flag of EXIF
        return _orientation_in(_chunk(file, 12, b"EXIF"))
    return 1


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
        size = _stored_size(io.BytesIO(encoded))
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


def inspect(encoded):
    """`check` and `read_orientation` of encoded bytes: (why they must not be decoded, orientation).

    The orientation of a WebP file that may have alpha or an animation is negative, and that of an upright JPEG with EXIF is 0:
    these are decoded in another way.
    """
    reason = check(encoded)
    orientation = 1 if reason else read_orientation(io.BytesIO(encoded))
    if orientation == 1 and encoded[:2] == b"\xff\xd8" and EXIF in encoded[:EXIF_WITHIN]:
        return reason, 0
    return reason, -orientation if encoded[:4] == b"RIFF" and encoded[12:16] != b"VP8 " else orientation


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
    for marker, _ in _jpeg_segments(file, _MOST_MARKERS):
        if marker in JPEG_FRAMES:
            return struct.unpack(">xHH", file.read(5))
    return None


def _jpeg_segments(file, most):
    """Skips from marker to marker, over `most` of them. Yields (marker, length of the segment), with the file at its content."""
    file.seek(2)
    for _ in range(most):
        mark, byte = file.read(1), file.read(1)
        if mark != b"\xff" or not byte:
            return
        if byte == b"\xff":  # a fill byte, of which there may be any number
            file.seek(-1, io.SEEK_CUR)
        elif byte[0] not in JPEG_BARE:
            length, content = int.from_bytes(file.read(2), "big"), file.tell()
            yield byte[0], length
            if length < 2:
                return
            file.seek(content + length - 2)


def _jpeg_exif(file):
    for marker, length in _jpeg_segments(file, MOST_PARTS):
        if marker in JPEG_FRAMES or file.tell() + len(EXIF) > EXIF_WITHIN:
            break
        if marker == 0xE1 and file.read(len(EXIF)) == EXIF:
            return file.read(max(min(length - 2 - len(EXIF), EXIF_WITHIN - file.tell()), 0))
    return b""


def _chunk(file, position, wanted):
    """The content of the first chunk `wanted` of a PNG or WebP file, from a position on; empty if there is none."""
    for _ in range(MOST_PARTS):
        file.seek(position)
        head = file.read(8)
        if wanted == b"eXIf":  # PNG: length, name, content, checksum
            name, length = head[4:], int.from_bytes(head[:4], "big")
            position += 12 + length
        else:  # WebP: name, length, content, a byte if the length is odd
            name, length = head[:4], int.from_bytes(head[4:], "little")
            position += 8 + length + length % 2
        if name == wanted:
            return file.read(min(length, MOST_EXIF_BYTES))
        if name == b"IEND" or len(head) < 8:
            break
    return b""


def _orientation_in(exif):
    """The orientation that the first table of EXIF states; 1 if there is none. EXIF has the form of a TIFF file."""
    exif = exif.removeprefix(EXIF)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    with contextlib.suppress(struct.error):  # the table is not in the file
        (table,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, table)
        for entry in range(min(count, MOST_ENTRIES)):
            tag, kind, number, value = struct.unpack_from(f"{order}HHI4s", exif, table + 2 + 12 * entry)
            if tag == ORIENTATION_TAG:
                form = {3: "H", 4: "I"}.get(kind)  # the standard demands 3
                stated = struct.unpack_from(f"{order}{form}", value)[0] if form and number == 1 else 1
                return stated if 1 <= stated <= 8 else 1
    return 1
