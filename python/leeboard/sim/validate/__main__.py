"""`python -m leeboard.sim.validate` is the process that owns a rig; `Rig` starts it."""

from __future__ import annotations

import sys

from leeboard.sim.validate.agent import main

if __name__ == "__main__":
    sys.exit(main())
