"""Measures the training of drafters.

python -m bench.draft [--quick] [--publish] [--only PART ...]
"""

from __future__ import annotations

from bench.environment import facts
from bench.systems import System


def _machine() -> dict[str, str]:
    found = facts()
    machine = {key: found[key] for key in ("processor", "cores", "kernels", "torch")}
    machine["cores"] += " cores"
    return machine


SYSTEM = System("draft", "Training drafters", ("train_step",), _machine)

if __name__ == "__main__":
    SYSTEM.main()
