"""GLUE: its tasks as stages, the sweep over rates, batches and seeds, and its table."""
