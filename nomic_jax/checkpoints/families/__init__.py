"""Encoder families: one file each for how its config.json is read and written."""
