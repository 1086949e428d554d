"""Where text comes from: every kind of file or data set behind one protocol."""
