"""The mode `report`: one HTML page about a training run. Start reading in `page.py`."""
