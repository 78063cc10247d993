"""Pruned layers and models, against torch's own dense ones: `python -m bench.prune`."""
