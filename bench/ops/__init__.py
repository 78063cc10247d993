"""One file per op, named after it: what is measured and against whom."""
