"""Benchmarks of the simulator: `python bench/run.py --sim`, or `python -m bench.sim --help`."""
