"""Benchmark metrics, and the runs that use them."""
