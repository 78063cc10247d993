"""Three sizes of the study."""

from __future__ import annotations

from leeboard.prune.study.settings import CONDITIONED, HELD_OUT, LEVELS, Case, Study

_SMALL = {"d_model": 48, "heads": 6, "layers": 2, "hidden": 192}
_ENCODERS = {**_SMALL, "layers": 1}
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
_PER_LAYER = ("taylor/mix", "kwon/mix", "flap/mix", "table", "gate", "gate, held out")

_DEFAULT = (
    Case(
        "digits-4",
        "shared",
        seeds=5,
        model=_SMALL,
        levels=_THREE,
        per_layer=("fisher/mix", "wanda_sp/mix", *_PER_LAYER),
        note="everything but the levels 20 and 40 %, which lie between their neighbours",
    ),
    Case(
        "synthetic",
        "cross",
        arms=("A", "B", "C"),
        seeds=3,
        rankers=_RIVALS,
        levels=_THREE,
        model=_ENCODERS,
        options={"noise": 0.6},
        per_layer=_PER_LAYER,
        masks=2,
        note="a net of five encoders is dear: one block in each, three arms (compute and random "
        "masks are controlled on the digits), 3 seeds, fewer rankings and masks; less noise, so "
        "that few epochs do",
    ),
    Case(
        "synthetic-unique",
        "late",
        arms=("A", "B", "C"),
        seeds=3,
        rankers=_RIVALS,
        levels=_THREE,
        model=_ENCODERS,
        per_layer=_PER_LAYER,
        masks=2,
        note="as above; data in which no sensor can replace another, made so that conditioning "
        "has something to gain",
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
        note="569 rows: a check that nothing odd happens on a table",
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
        per_layer=("magnitude", *_PER_LAYER),
        per_layer_levels=LEVELS,
        train_rows=2400,
        epochs=40,
        claim=data != "breast-cancer",
    )
    for data in ("digits-4", "digits-8", "synthetic", "synthetic-unique", "breast-cancer")
    for backbone in ("shared", "cross", "late")
)


PRESETS: dict[str, Study] = {
    "default": Study("default", _DEFAULT),
    "quick": Study("quick", _QUICK),
    "full": Study("full", _FULL),
}
