"""Benchmarks, each compared in the same run with its baseline and with a lower bound (the floor)."""
