"""Weights of others: files of several kinds, read as one `Source`."""
