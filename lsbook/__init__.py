"""Level set networks: the code of the book, small enough to read from top to bottom."""

__version__ = "0.1.0"
