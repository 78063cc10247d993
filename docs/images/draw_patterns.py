"""Draws the patterns of sparse_gqa: python docs/images/draw_patterns.py [FILE]

A square of queries by keys for each, from its own mask; of TopU, from what the op computes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from leeboard.ops import sparse_gqa
from leeboard.ops.patterns import Band, Blocks, Causal, Dense, Modality, Pattern, TopU

TOKENS = 48
MODALITIES = Modality.of_lengths((12, 20, 16), window=6)
PANELS: dict[str, Pattern] = {
    "Dense()": Dense(),
    "Causal()": Causal(),
    "Band(8)": Band(8),
    "Band(8, causal=False)": Band(8, causal=False),
    "Band(8, sinks=2)": Band(8, sinks=2),
    "Modality(spans, window=6)": MODALITIES,
    "Modality(spans, window=6) & Causal()": MODALITIES & Causal(),
    "Blocks(index, block=12)": Blocks(((0,), (0, 1), (0, 2), (2, 3)), block=12),
    "Band(4) | Blocks(index, block=12)": Band(4) | Blocks(((), (0,), (0,), (0, 1)), block=12),
    "TopU(factor=3)": TopU(3),
}
SEEN, MEAN, NOTHING = 1.0, 0.25, 0.0


def picture(pattern: Pattern) -> torch.Tensor:
    """What is drawn of a pattern, [queries, keys]."""
    if not isinstance(pattern, TopU):
        return pattern.dense_mask(TOKENS).float()
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, TOKENS, 16, generator=generator)
    _, lse = sparse_gqa(q, k, k, pattern, return_lse=True)
    # The mean's log-sum-exp is that of equal scores.
    mean = torch.isclose(lse[0, 0], torch.tensor(float(TOKENS)).log())
    return torch.where(mean[:, None], MEAN, SEEN).expand(TOKENS, TOKENS)


def draw(file: Path) -> None:
    """Writes the picture of all patterns."""
    import matplotlib.pyplot as plt
    from matplotlib.colors import LinearSegmentedColormap

    colors = LinearSegmentedColormap.from_list("seen", ["#f4f6f6", "#00695c"])
    figure, axes = plt.subplots(2, 5, figsize=(13, 6))
    for axis, (title, pattern) in zip(axes.flat, PANELS.items(), strict=True):
        axis.imshow(picture(pattern).numpy(), cmap=colors, vmin=NOTHING, vmax=SEEN)
        share = pattern.pairs(TOKENS) / TOKENS**2
        axis.set_title(f"{title}\n{share:.0%} of the pairs", fontsize=8.5)
        axis.set_xticks([])
        axis.set_yticks([])
        if isinstance(pattern, TopU):
            axis.set_xticks(pattern.sampled(TOKENS).tolist(), [])
    axes[0, 0].set_ylabel("queries")
    axes[0, 0].set_xlabel("keys")
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("patterns.png"))
