"""Measuring embeddings: retrieval, semantic similarity, and the lexical baseline."""
