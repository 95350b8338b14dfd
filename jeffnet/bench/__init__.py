"""Benchmarks: every backend and its peers, in separate processes that take turns."""
