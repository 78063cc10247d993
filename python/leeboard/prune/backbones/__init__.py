"""Three multimodal classifiers of different build: small, and made of what `units` knows."""

from __future__ import annotations

from leeboard.prune.backbones._base import Backbone
from leeboard.prune.backbones.config import BackboneConfig, Stream
from leeboard.prune.backbones.cross_fusion import CrossFusion
from leeboard.prune.backbones.late_fusion import LateFusion
from leeboard.prune.backbones.shared_encoder import SharedEncoder

__all__ = [
    "BACKBONES",
    "Backbone",
    "BackboneConfig",
    "CrossFusion",
    "LateFusion",
    "SharedEncoder",
    "Stream",
    "build",
]

BACKBONES: dict[str, type[Backbone]] = {
    "shared": SharedEncoder,
    "cross": CrossFusion,
    "late": LateFusion,
}


def build(name: str, config: BackboneConfig) -> Backbone:
    """The backbone of that name: "shared", "cross" or "late".

    Raises:
        ValueError: For another name.
    """
    if name not in BACKBONES:
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(BACKBONES)}")
    return BACKBONES[name](config)
