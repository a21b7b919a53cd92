"""The old place of two functions, until train.py uses the new one."""

from train_lib.distribution.workers import check_common_ground, check_same_step  # noqa: F401
