"""The command line and the process around a run: flags, presets, signals, environment."""
