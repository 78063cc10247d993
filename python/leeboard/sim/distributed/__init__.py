"""Ordinary torch.distributed programs on simulated devices: every rank is a thread of one process.

The only part of `leeboard.sim` that needs torch. docs/sim/torch.md tells how to run a script.
"""

from __future__ import annotations
