"""A study on disk, and its exchange with remote workers."""
