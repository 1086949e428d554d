"""Kinds of evaluation tasks: one file each, and the registry."""
