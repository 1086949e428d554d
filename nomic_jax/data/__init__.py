"""Where batches come from: sources of text, and the step that picks their records."""
