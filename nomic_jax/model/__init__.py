"""The encoder, its heads, and what turns hidden states into embeddings."""
