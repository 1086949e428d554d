"""What a training step needs of chips that are not here, by compiling it for them."""
