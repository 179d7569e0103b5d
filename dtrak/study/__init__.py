"""A study on disk, and copies of it on other machines."""
