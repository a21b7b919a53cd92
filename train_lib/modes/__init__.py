"""The modes of main.py besides training."""
