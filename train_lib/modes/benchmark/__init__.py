"""The mode `benchmark`: measures what limits the training speed. Start reading in `measure.py`."""
