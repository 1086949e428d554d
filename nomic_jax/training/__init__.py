"""Losses, the optimizer, the step as a pure function, and the loop that runs it."""
