"""The tests, in the rooms of what they test. They import each other's helpers as tests.<room>.<file>."""
