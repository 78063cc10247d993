"""Benchmarks: `make bench`, or `python bench/run.py --help`. Not installed."""
