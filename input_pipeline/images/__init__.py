"""From encoded bytes to uint8 pixels: headers, decoding, windows, and what becomes of a bad example."""
