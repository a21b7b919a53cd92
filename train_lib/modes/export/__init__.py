"""The mode `export`: writes a checkpoint as a SavedModel and a .keras file. Start reading in `saved_model.py`."""
