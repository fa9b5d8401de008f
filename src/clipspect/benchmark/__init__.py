"""Measuring: metrics, and the runs that use them."""
