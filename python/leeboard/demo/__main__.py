"""`python -m leeboard.demo`, the same as `leeboard demo`."""

from __future__ import annotations

import argparse
import sys

from leeboard.demo.cli import add_arguments, run


def main() -> int:
    """Parse the command line and run the demo."""
    parser = argparse.ArgumentParser(prog="python -m leeboard.demo")
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
