"""How large the demo is."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

BACKBONES = ("shared", "cross", "late")
RANKINGS = ("table", "gate")


@dataclass(frozen=True)
class Settings:
    """Everything that the demo's numbers follow from, besides the machine.

    Attributes:
        backbone: One of BACKBONES.
        ranking: What ranks the units: a table per set of sensors, or the gate network.
        budget: The lowest budget of the stream, as `Budget.parse` takes it.
        seed: Of the data, the weights, the training and the stream.
        threads: Of torch while the stream runs; a window is one sample, so one is enough.
        subjects: People in the synthetic data; a fifth of them is streamed.
        windows: Of each subject.
        tokens: Tokens of a sensor's window, at most.
        d_model: Channels of a token.
        heads: Query heads.
        hidden: Channels of a feed-forward block.
        layers: Blocks of an encoder.
        epochs: Passes over the training windows.
        batch: Windows of a step.
        rate: Highest learning rate.
        p_max: Chance at the end of the curriculum that a sensor of a window is dropped.
        phase: Windows streamed in each phase.
        repeats: Timed calls of a window for each model; the fastest counts.
        rolling: Windows over which accuracy is averaged in the table and the plot.
    """

    backbone: str = "shared"
    ranking: str = "table"
    budget: str = "25%"
    seed: int = 0
    threads: int = 1
    subjects: int = 20
    windows: int = 120
    tokens: int = 8
    d_model: int = 128
    heads: int = 8
    hidden: int = 512
    layers: int = 2
    epochs: int = 12
    batch: int = 64
    rate: float = 2e-3
    p_max: float = 0.3
    phase: int = 40
    repeats: int = 7
    rolling: int = 40

    @classmethod
    def quick(cls, **changes: Any) -> Settings:
        """A version of less than a minute."""
        small = cls(tokens=4, d_model=48, heads=6, hidden=192, epochs=20, phase=24, rolling=24)
        return replace(small, **changes)

    def of_training(self) -> dict[str, Any]:
        """What a trained model depends on; the rest may change without training again."""
        streamed = {"ranking", "budget", "threads", "phase", "repeats", "rolling"}
        return {name: value for name, value in asdict(self).items() if name not in streamed}
