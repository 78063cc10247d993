"""Three sizes of the study."""

from __future__ import annotations

from leeboard.prune.study.settings import CONDITIONED, HELD_OUT, LEVELS, Case, Study

_SMALL = {"d_model": 48, "heads": 6, "layers": 2, "hidden": 192}
# What the verdicts and the switches need, without the halves of each other.
_RIVALS = (
    "magnitude",
    "taylor/full",
    "taylor/mix",
    "fisher/mix",
    "kwon/mix",
    "flap/full",
    "flap/mix",
    "flap+bias/full",
    "flap+bias/mix",
    *CONDITIONED,
    *HELD_OUT,
)
_THREE = (0.1, 0.3, 0.5)

_DEFAULT = (
    Case(
        "digits-4",
        "shared",
        seeds=5,
        model=_SMALL,
        levels=_THREE,
        per_layer=("taylor/mix", "table", "gate"),
        note="the whole grid but for the levels 20 and 40 %, which lie between their neighbours",
    ),
    Case(
        "synthetic",
        "cross",
        arms=("A", "B", "C"),
        seeds=3,
        rankers=_RIVALS,
        levels=_THREE,
        epochs=15,
        model=_SMALL,
        masks=2,
        note="three arms, since compute and random masks are controlled on the digits; 3 seeds "
        "and fewer rankings, since five modalities make a training and its masks dearer",
    ),
    Case(
        "synthetic",
        "late",
        arms=("A", "B", "C"),
        seeds=3,
        rankers=_RIVALS,
        levels=_THREE,
        epochs=15,
        model=_SMALL,
        masks=2,
        note="as for cross fusion",
    ),
    Case(
        "breast-cancer",
        "shared",
        arms=("A", "B", "C"),
        seeds=3,
        rankers=_RIVALS,
        levels=_THREE,
        model=_SMALL,
        claim=False,
        note="a sanity check on tabular rows",
    ),
)

_QUICK = (
    Case(
        "digits-4",
        "shared",
        seeds=2,
        rankers=("random", "magnitude", "taylor/mix", "flap/mix", *CONDITIONED, *HELD_OUT),
        levels=(0.5,),
        epochs=4,
        train_rows=400,
        validation_rows=100,
        test_rows=200,
        masks=1,
        model={"d_model": 32, "heads": 4, "layers": 1, "hidden": 64},
        note="quick",
    ),
)


_FULL = tuple(
    Case(
        data,
        backbone,
        seeds=5,
        model={**_SMALL, "layers": 3},
        per_layer=("magnitude", "taylor/mix", "kwon/mix", "table", "gate"),
        per_layer_levels=LEVELS,
        train_rows=2400,
        claim=data != "breast-cancer",
    )
    for data in ("digits-4", "digits-8", "synthetic", "breast-cancer")
    for backbone in ("shared", "cross", "late")
)


PRESETS: dict[str, Study] = {
    "default": Study("default", _DEFAULT),
    "quick": Study("quick", _QUICK),
    "full": Study("full", _FULL),
}
