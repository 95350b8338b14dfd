"""Benchmarks: models in every backend and beside their peers, each in a process of its own, in alternation."""
