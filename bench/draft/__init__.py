"""Training drafters, against the same step in plain PyTorch: `python -m bench.draft`."""
