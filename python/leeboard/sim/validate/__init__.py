"""The same script on real gloo, over links of known rate and delay, against its prediction.

Nothing here is imported by `import leeboard.sim`. See docs/sim/validate.md.
"""

from __future__ import annotations

from leeboard.sim.validate.rig import Links, Outcome, Rig, RigError
from leeboard.sim.validate.scenarios import Setting

__all__ = ["Links", "Outcome", "Rig", "RigError", "Setting"]
