"""The old names of two functions, until train.py uses the new ones."""

from train_lib.records.run_log import describe_divergence as describe  # noqa: F401
from train_lib.records.terminal import divergence_in_words as in_words  # noqa: F401
