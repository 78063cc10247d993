"""The rig by the kernel's own means: veth pairs, a bridge, htb for rate, netem for delay."""

from __future__ import annotations

import shutil


def available() -> str | None:
    """None if traffic control can be used here; else the reason why not."""
    return "not looked for yet" if shutil.which("tc") else "there is no tc"
