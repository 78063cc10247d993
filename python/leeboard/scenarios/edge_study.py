"""Plans of an edge deployment from `leeboard prune study` and `leeboard prune calibrate`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from leeboard.scenarios.edge_plans import EdgeCandidate, Plans, Sensor
from leeboard.scenarios.given import given_json

_UNPRUNED = "100%"
# Of a number of a window, and of a feature.
_FLOAT = 4


def plans_of_study(
    records: str | Path | Sequence[str | Path],
    latency: str | Path,
    *,
    ranker: str | None = None,
    planning: str = "global",
) -> Plans:
    """Accuracies that a study measured, with the milliseconds that a latency table gives them.

    The study does not keep its plans, only their share of the multiply-adds, so a plan's time is that
    of the table with this share of the units of every sublayer. Encoders are known apart in backbones
    that have one for each modality ("late", "cross"); what the table cannot assign (tokenizers,
    norms, classifier) is counted to a sensor as far as it grows with the number of sensors.

    Args:
        records: Unit files of a study's run folder (`units/*.json`), of one data set, backbone and
            arm; accuracies are averaged over their seeds.
        latency: File of `leeboard prune calibrate`, of the device that counts as speed 1.
        ranker: Whose plans; default: the one that is best on validation rows.
        planning: "global" or "per layer".

    Raises:
        ValueError: Files that are no records, or of different trainings; a ranker that was not
            measured.
        LookupError: The table was measured on other shapes.
        FileNotFoundError: There is no such file.
    """
    from leeboard.prune import LatencyTable

    paths = [records] if isinstance(records, str | Path) else list(records)
    read = [_record(Path(path)) for path in paths]
    if not read:
        raise ValueError("study: got no files, expected units/*.json of a run folder")
    kinds = {tuple(r["unit"][k] for k in ("data", "backbone", "arm")) for r in read}
    if len(kinds) > 1:
        raise ValueError(
            f"study: got records of {', '.join(map(' '.join, sorted(kinds)))}; expected seeds of one"
        )
    chosen = _ranker(read, ranker, planning)
    table = LatencyTable.load(latency, any_device=True)
    times = _Times(read[0], table)
    accuracy: dict[tuple[str, ...], dict[float, list[float]]] = defaultdict(
        lambda: defaultdict(list)
    )
    shares: dict[tuple[tuple[str, ...], float], list[float]] = defaultdict(list)
    for record in read:
        sets = [tuple(m for m in times.order if m in mask["present"]) for mask in record["masks"]]
        for entry in record["unpruned"]:
            accuracy[sets[entry["mask"]]][0.0].append(entry["test"])
            shares[sets[entry["mask"]], 0.0].append(1.0)
        for cell in record["cells"]:
            if (cell["ranker"], cell["planning"]) == (chosen, planning):
                present = sets[cell["mask"]]
                accuracy[present][cell["level"]].append(cell["test"])
                shares[present, cell["level"]].append(cell["share"])
    rows = []
    for present in sorted(accuracy, key=lambda p: (-len(p), p)):
        for level, found in sorted(accuracy[present].items()):
            encoders, total = times.of(present, mean(shares[present, level]))
            name = _UNPRUNED if level == 0.0 else f"{100 * (1 - level):g}%"
            rows.append(
                EdgeCandidate(name, present, mean(found), total, encoders, times.weight_bytes)
            )
    data, backbone, arm = next(iter(kinds))
    source = (
        f"study of {data}, {backbone}, arm {arm}, {len(read)} seed{'s' if len(read) > 1 else ''}, "
        f"ranked by {chosen} ({planning}); times of {table.device.processor}, "
        f"{table.device.threads} thread{'s' if table.device.threads > 1 else ''}"
    )
    return Plans(times.sensors(), tuple(rows), source)


def _record(path: Path) -> dict[str, Any]:
    found = given_json("study", path)
    needed = ("unit", "settings", "modalities", "masks", "unpruned", "cells", "parameters")
    if not isinstance(found, dict) or any(key not in found for key in needed):
        raise ValueError(
            f"study: {path}: no record of `leeboard prune study`; expected a file of units/ in its run "
            "folder"
        )
    return found


def _ranker(records: Sequence[Mapping[str, Any]], asked: str | None, planning: str) -> str:
    right: dict[str, list[float]] = defaultdict(list)
    for record in records:
        for cell in record["cells"]:
            # Of the sets that were held out not all are there.
            if cell["planning"] == planning and "held out" not in cell["ranker"]:
                right[cell["ranker"]].append(cell["validation"])
    if not right:
        raise ValueError(f"planning: got {planning!r}, by which the study made no plans")
    if asked is None:
        return max(right, key=lambda name: mean(right[name]))
    if asked not in right:
        raise ValueError(f"ranker: got {asked!r}, expected one of {', '.join(right)}")
    return asked


class _Times:
    """Milliseconds of the study's model, from a latency table.

    Args:
        record: A record of the study; its model is built anew (with other weights).
        table: Of its shapes.
    """

    def __init__(self, record: Mapping[str, Any], table: Any) -> None:
        from leeboard.prune import units
        from leeboard.prune.backbones import BackboneConfig, build
        from leeboard.prune.study.measure import load
        from leeboard.prune.study.settings import Case

        settings = dict(record["settings"])
        for key in ("rankers", "levels", "per_layer", "per_layer_levels"):
            settings[key] = tuple(settings[key])
        case = Case(**settings)
        data = load(case, record["unit"]["seed"])
        config = BackboneConfig.for_inputs(data.inputs, len(data.classes), **case.model)
        self.order = tuple(record["modalities"])
        self.table = table
        self.units = units(build(case.backbone, config))
        self.weight_bytes = float(_FLOAT * record["parameters"])
        self._inputs = {name: data.inputs[name][0].numel() for name in self.order}
        self._width = config.d_model
        self._apart = any(s.name.startswith("encoders.") for s in self.units)
        self._pooled = case.backbone == "late"

    def sensors(self) -> dict[str, Sensor]:
        """Bytes of windows and of features, in single precision."""
        found = {}
        tokens = self.units.tokens(self.order)
        for name in self.order:
            rows = 1
            if not self._pooled:
                own = [t for s, t in tokens.items() if s.startswith(f"encoders.{name}.")]
                rows = own[0].queries if own else 1
            found[name] = Sensor(
                name, float(_FLOAT * self._inputs[name]), float(_FLOAT * rows * self._width)
            )
        return found

    def of(self, present: tuple[str, ...], share: float) -> tuple[dict[str, float] | None, float]:
        """Seconds of each encoder, or None, and of the whole."""
        tokens = self.units.tokens(present)
        own, total = dict.fromkeys(present, 0.0), self.table.rest(present)
        for sublayer in self.units:
            if sublayer.name not in tokens:
                continue
            kept = min(sublayer.units, max(1, round(share * sublayer.units)))
            took = self.table.milliseconds(sublayer, kept, tokens[sublayer.name])
            total += took
            part = sublayer.name.split(".")
            if part[0] == "encoders" and part[1] in own:
                own[part[1]] += took
        if not self._apart:
            return None, 1e-3 * total
        rest = self._rest_of_a_sensor()
        return {name: 1e-3 * (took + rest) for name, took in own.items()}, 1e-3 * total

    def _rest_of_a_sensor(self) -> float:
        if len(self.order) < 2:
            return 0.0
        single = mean(self.table.rest((name,)) for name in self.order)
        grown = (self.table.rest(self.order) - single) / (len(self.order) - 1)
        least = min(self.table.rests.values(), default=0.0) / 2
        # Noise must not make an encoder take more than there is.
        rest: float = max(0.0, min(grown, least))
        return rest
