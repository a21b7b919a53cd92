"""The old name of `one_line_of`, until setup.py uses the new one."""

from input_pipeline.common.errors import one_line_of as first_line  # noqa: F401
