"""Checkpoints: published tensors and configs to ours and back, strictly."""
