"""Measurements, each against the thing it claims to beat and against the floor, in one run."""
