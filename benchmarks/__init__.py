"""Benchmarks: ``python -m benchmarks.speed`` runs them all, ``make bench`` also writes docs/lab/benchmarks.md."""
