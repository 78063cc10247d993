"""A small training of a drafter, for the tests of `train_drafter` and for the processes they start.

As a program: `train_runs.py OUT kill STEP` kills itself after that step; `train_runs.py OUT twins`
runs under torchrun.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from drafter_models import make_target
from leeboard.draft import DrafterConfig, Trained, TrainSettings, train_drafter
from leeboard.draft.training import History, Interrupted, Rows, shards
from training_data import random_rows

SETTINGS = TrainSettings(
    steps=9,
    batch=4,
    ttt=2,
    lr=3e-3,
    heldout_share=0.2,
    evaluate_every=4,
    checkpoint_every=2,
    checkpoint_seconds=None,
)


def new_target() -> Any:
    return make_target("llama")


def new_rows() -> Rows:
    """26 packed rows of 16 tokens: less than two epochs of the settings."""
    return random_rows(count=60)


def train(out: Path | None = None, settings: TrainSettings = SETTINGS, **given: Any) -> Trained:
    target = given.pop("target", None) or new_target()
    if "drafter" not in given:
        given.setdefault("config", DrafterConfig.for_target(target.config, draft_vocab_size=40))
    rows = given.pop("data", None)
    return train_drafter(
        target,
        new_rows() if rows is None else rows,
        out=out,
        settings=settings,
        progress=False,
        **given,
    )


def curve(history: History) -> dict[str, Any]:
    """All that is recorded but for the time."""
    steps = {name: column for name, column in history.steps.items() if name != "seconds"}
    return {"steps": steps, "evaluations": history.evaluations}


def kill(out: Path, at: int) -> None:
    def on_step(step: int, values: Mapping[str, float]) -> None:
        if step == at:
            os.kill(os.getpid(), signal.SIGKILL)

    train(out, on_step=on_step)


def refusal(settings: TrainSettings, **place: Path) -> str:
    try:
        train(settings=settings, **place)
    except (OSError, RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "trained"


def twins(out: Path) -> None:
    """Under torchrun: a whole training, one that is stopped by a signal and goes on, and two that
    cannot be."""
    rank = int(os.environ["RANK"])
    settings = dataclasses.replace(SETTINGS, batch=8, accumulate=2)
    whole = train(out / "whole", settings)
    stopped = None

    def on_step(step: int, values: Mapping[str, float]) -> None:
        # The second process alone is told to stop.
        if step == 5 and rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        train(out / "stopped", settings, on_step=on_step)
    except Interrupted as error:
        stopped = error.step
    resumed = train(out / "stopped", settings)
    low = dataclasses.replace(SETTINGS, batch=8, steps=2, precision="bfloat16")
    # A folder that the other does not see, and a disk that only the first one finds full.
    shards.free_bytes = lambda folder: 0
    refused = [
        refusal(settings, out=out / ("elsewhere" if rank else "whole")),
        refusal(settings, states=out / "states"),
    ]
    (out / f"rank{rank}.json").write_text(
        json.dumps(
            {
                "whole": curve(whole.history),
                "resumed": curve(resumed.history),
                "stopped": stopped,
                "low": train(None, low).history.loss,
                "refused": refused,
                "weights": [float(p.detach().double().sum()) for p in resumed.drafter.parameters()],
            }
        )
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    if sys.argv[2] == "kill":
        kill(folder, int(sys.argv[3]))
    else:
        twins(folder)
