from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from leeboard.demo.report import plot, sample, table


def run(depth: int, *, reached: list[int], accepted: list[int]) -> dict[str, Any]:
    rounds = reached[0]
    padding = [0] * (depth - len(reached))
    reached, accepted = reached[:depth] + padding, accepted[:depth] + padding
    mean = sum(accepted) / rounds
    return {
        "tokens_per_second": 1234.5,
        "target_forwards": rounds + 2,
        "tokens_per_target_forward": mean + 1,
        "mean_accepted": mean,
        "tau": mean + 1,
        "reached_by_depth": reached,
        "acceptance_by_depth": [
            a / r if r else None for a, r in zip(accepted, reached, strict=True)
        ],
        "share_by_depth": [a / rounds for a in accepted],
        "state_rms_by_depth": [1.0 + k for k in range(depth)],
        "equal_to_greedy": 2,
    }


def results(ttt: int, depth: int) -> dict[str, Any]:
    figures = {"reached": [1000, 600, 300, 10], "accepted": [600, 300, 10, 0]}
    runs = {name: {str(d): run(d, **figures) for d in {ttt, depth}} for name in ("pre", "post")}
    runs["pre"][str(depth)]["equal_to_greedy"] = 1
    return {
        "settings": {"ttt": ttt, "depth": depth},
        "decode": {
            "plain": {"new_tokens": 19000, "target_forwards": 19000, "tokens_per_second": 1000.2},
            "runs": runs,
            "prompts": [{}, {}],
        },
    }


@pytest.mark.parametrize(
    ("ttt", "depth"), [(2, 8), (1, 1), (4, 4), (8, 2), (3, 20), (8, 16)], ids=str
)
def test_table_fits_eighty_columns(ttt: int, depth: int) -> None:
    text = table(results(ttt, depth))
    assert max(len(line) for line in text.splitlines()) < 80
    assert ("longer than in training" in text) == (ttt < depth)


def test_table_says_what_was_measured() -> None:
    lines = table(results(2, 8)).splitlines()

    def cells(label: str) -> list[str]:
        return next(line for line in lines if line.startswith(label))[26:].split()

    assert cells("tokens per second") == ["1000", *["1234"] * 4]
    assert cells("target forward passes") == ["19,000", *["1,002"] * 4]
    assert cells("mean accepted") == ["-", "0.90", "0.90", "0.91", "0.91"]
    assert cells("tau") == ["-", "1.90", "1.90", "1.91", "1.91"]
    # One of two prompts differs from plain greedy: the table must not hide it.
    assert cells("same text") == ["-", "yes", "yes", "1/2", "yes"]
    first = lines.index("accepted, of the drafts tested")
    accepted = lines[first + 1].replace("|", " ").split()
    assert accepted == ["pre-norm", "60%", "50%", "3%", "0%", "-", "-", "-", "-"]


@pytest.mark.parametrize(("ttt", "depth"), [(2, 8), (1, 1), (8, 2)], ids=str)
def test_plot_is_a_png(tmp_path: Path, ttt: int, depth: int) -> None:
    mpl_image = pytest.importorskip("matplotlib.image")
    plot(results(ttt, depth), tmp_path / "drift.png")
    assert [path.name for path in tmp_path.iterdir()] == ["drift.png"]
    pixels = mpl_image.imread(tmp_path / "drift.png")
    assert pixels.shape[1] > pixels.shape[0] > 400
    assert pixels[..., :3].std() > 0.05


def test_sample_marks_accepted_drafts() -> None:
    decoded = {
        "file": "heapq.py",
        "prompt": "def f(x):\n",
        "pieces": [["    return", False], [" x", True], ["\n", False]],
        "new_tokens": 4,
        "target_forwards": 3,
    }
    assert sample(decoded, color=False).endswith("\n\ndef f(x):\n    return« x»")
    assert "\033[32m« x»\033[0m" in sample(decoded, color=True)
