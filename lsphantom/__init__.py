"""Synthetic abdominal CT, drawn by implicit functions: the data that come with the book."""
