"""The mode `sweep`: one training run for every combination of settings, each a process of its own."""
