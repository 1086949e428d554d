"""Making the training set better: which documents to set against a query."""
