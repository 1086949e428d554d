"""Attention: the layer, and one file for each backend that computes it."""
