"""Pictures of a result: who did what when, how full the links were, how long requests took."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leeboard.sim.files import atomic
from leeboard.sim.records import PICOSECONDS, Kind
from leeboard.sim.shares import BLOCKED, coverage, time_shares
from leeboard.sim.table import text_of
from leeboard.sim.tracks import tracks

if TYPE_CHECKING:
    from leeboard.sim.result import Result

COMPUTE, COMMUNICATION, IDLE = "#2f6690", "#f2a65a", "#eceff1"
PATH, EVENT = "#111111", "#c1121f"
# Of the critical path.
_PARTS = {
    "compute": COMPUTE,
    "transfer": COMMUNICATION,
    "contention": "#c8553d",
    "handshake": "#8a5a83",
    "no request": "#cfd8dc",
    "other": "#7a7a7a",
}
_LINES = ("#2f6690", "#c8553d", "#588b8b", "#8a5a83", "#7a7a7a")
# Beyond these a picture of everything would be a smear.
_ROWS, _RECTANGLES, _LINK_ROWS, _SEGMENTS = 64, 20_000, 24, 120
_IMAGE_ROWS, _BINS = 256, 600


def plot(result: Result, path: str | Path | None = None) -> Any:
    """Draw a result; see `Result.plot`."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        message = "plots need matplotlib: pip install 'leeboard[viz]'"
        raise ModuleNotFoundError(message, name="matplotlib") from None
    timeline = len(result.records) > 0
    height = min(max(0.28 * len(result.ranks), 1.6), 5.0)
    if timeline:
        panels = [("What each rank does", _timeline, height)]
    else:
        panels = [("What each rank does, in all", _totals, height)]
    if timeline and len(result.critical_path) > _SEGMENTS:
        panels.append(("What the critical path is made of", _made_of, 1.4))
    if timeline and len(result.ranks) > _ROWS:
        panels.append(("How many ranks do it", _share_of_ranks, 1.6))
    if result.link_use.size and result.links["bytes"].any():
        panels.append(("How full the links are", _links, 2.2))
    if any(len(queue.latency) for queue in result.queues):
        panels.append(("How long requests take", _latencies, 2.6))
    heights = [height for _, _, height in panels]
    figure = Figure(figsize=(11.0, sum(heights) + 0.75 * len(panels) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
    figure.suptitle(_title(result), x=0.01, ha="left", fontsize=11)
    for (title, draw, _), axis in zip(panels, axes, strict=True):
        axis.set_title(title, loc="left", fontsize=9, fontweight="bold")
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        axis.tick_params(labelsize=8)
        draw(result, axis)
    if path is not None:
        suffix = Path(path).suffix.lstrip(".") or "png"
        with atomic(path) as file:
            figure.savefig(file, format=suffix, dpi=130)
    return figure


def _title(result: Result) -> str:
    shares = result.shares()
    parts = ", ".join(f"{name} {text_of(share, '%')}" for name, share in shares.items())
    ranks = f"{len(result.ranks):,} rank{'s' if len(result.ranks) > 1 else ''}"
    return f"{text_of(result.makespan, 's')} on {ranks}: {parts}"


def _unit(result: Result) -> tuple[float, str]:
    """Seconds of the unit of the time axis, and its name."""
    for scale, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")):
        if result.makespan >= 2 * scale:
            return scale, name
    return 1e-12, "ps"


def _time_axis(result: Result, axis: Any) -> float:
    scale, name = _unit(result)
    axis.set_xlim(0, result.makespan / scale)
    axis.set_xlabel(f"time ({name})", fontsize=9)
    return scale


def _timeline(result: Result, axis: Any) -> None:
    from matplotlib.patches import Patch

    scale = _time_axis(result, axis)
    ranks = len(result.ranks)
    if ranks <= _ROWS and len(result.records) <= _RECTANGLES:
        _rectangles(result, axis, scale)
    else:
        _image(result, axis, scale)
    axis.set_ylim(ranks - 0.5, -0.5)
    axis.set_ylabel("rank", fontsize=9)
    axis.yaxis.get_major_locator().set_params(integer=True)
    named = ((COMPUTE, "compute"), (COMMUNICATION, "communication"), (IDLE, "idle"))
    shown: list[Any] = [Patch(facecolor=color, label=label) for color, label in named]
    shown.append(_path(result, axis, scale))
    events = (
        (result.failures, "X", "device stopped"),
        (result.out_of_memory, "v", "out of memory"),
    )
    for found, marker, label in events:
        if found:
            x, y = [event.at / scale for event in found], [event.rank for event in found]
            look = {"color": EVENT, "markeredgecolor": "white", "linestyle": "none"}
            shown += axis.plot(x, y, marker, label=label, markersize=9, clip_on=False, **look)
    _legend(axis, shown)


def _legend(axis: Any, handles: list[Any] | None = None) -> None:
    given = {} if handles is None else {"handles": handles}
    place = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "ncols": 6, "borderaxespad": 0.2}
    axis.legend(fontsize=8, frameon=False, **place, **given)


def _rectangles(result: Result, axis: Any, scale: float) -> None:
    from matplotlib.collections import PolyCollection

    records, shown = result.records, tracks(result.records)
    lanes = np.bincount([track.rank for track in shown], minlength=len(result.ranks))
    used = np.zeros_like(lanes)
    axis.set_facecolor(IDLE)
    for track in shown:
        # A rank's streams share its row.
        height = 0.8 / lanes[track.rank]
        top = track.rank - 0.4 + height * used[track.rank]
        used[track.rank] += 1
        chosen = records[track.records]
        for kinds, color in (((Kind.COMPUTE,), COMPUTE), (BLOCKED, COMMUNICATION)):
            part = chosen[np.isin(chosen["kind"], np.asarray(kinds, np.uint8))]
            start, end = (part[name] / PICOSECONDS / scale for name in ("start", "end"))
            low, high = np.full(len(part), top), np.full(len(part), top + height)
            x = np.stack([start, end, end, start], axis=1)
            corners = np.stack([x, np.stack([low, low, high, high], axis=1)], axis=2)
            axis.add_collection(PolyCollection(list(corners), facecolors=color, edgecolors="none"))


def _image(result: Result, axis: Any, scale: float) -> None:
    ranks = len(result.ranks)
    group = -(-ranks // _IMAGE_ROWS)
    compute, blocked = time_shares(result.records, ranks, result.makespan_ps, _BINS, group)
    colors = [np.array(_rgb(color)) for color in (COMPUTE, COMMUNICATION, IDLE)]
    idle = 1.0 - compute - blocked
    parts = zip((compute, blocked, idle), colors, strict=True)
    picture = np.sum([part[:, :, None] * color for part, color in parts], axis=0)
    extent = (0, result.makespan / scale, len(compute) * group - 0.5, -0.5)
    axis.imshow(
        np.clip(picture, 0, 1), aspect="auto", extent=extent, interpolation="nearest", zorder=0
    )


def _rgb(color: str) -> tuple[float, ...]:
    return tuple(int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))


def _path(result: Result, axis: Any, scale: float) -> Any:
    """Draws it over the timeline; returns the line."""
    from matplotlib.patheffects import Normal, Stroke

    path = result.critical_path
    if len(path) <= _SEGMENTS:
        x = np.array([time / scale for s in path for time in (s.start, s.end)])
        to = (s.peer if s.what == "message" else s.rank for s in path)
        y = np.array([rank for s, end in zip(path, to, strict=True) for rank in (s.rank, end)])
        label = "critical path"
    else:
        # Where it is most of the time: all of it would be black.
        places = sorted(path.by_rank())
        row = np.searchsorted(places, [segment.rank for segment in path])
        times = np.array([(s.start, s.end) for s in path]) * (_SEGMENTS / path.duration)
        start, end = np.minimum(times, _SEGMENTS).T
        cover = coverage(row, start, end, len(places), _SEGMENTS)
        x = (np.arange(_SEGMENTS + 1) * (result.makespan / _SEGMENTS / scale)).repeat(2)[1:-1]
        y = np.array(places)[np.argmax(cover, axis=0)].repeat(2)
        label = "critical path, mostly"
    width = 1.0 if len(result.ranks) > _ROWS else 1.4
    (line,) = axis.plot(x, y, color=PATH, linewidth=width, clip_on=False, label=label)
    line.set_path_effects([Stroke(linewidth=2 * width, foreground="white"), Normal()])
    return line


def _made_of(result: Result, axis: Any) -> None:
    scale, path = _time_axis(result, axis), result.critical_path
    kinds = [kind for kind, total in path.totals().items() if total > 0]
    bins = _BINS // 4
    # A message's transfer is drawn before its contention.
    pieces = []
    for segment in path:
        at = segment.start
        for kind, part in segment.parts.items():
            if part > 0:
                pieces.append((kinds.index(kind), at, at + part))
                at += part
    row, start, end = (np.array(column) for column in zip(*pieces, strict=True))
    begun, over = (np.minimum(time * (bins / path.duration), bins) for time in (start, end))
    shares = coverage(row, begun, over, len(kinds), bins)
    x = (np.arange(bins) + 0.5) * (path.duration / bins / scale)
    totals = path.totals()
    labels = [f"{kind} {text_of(totals[kind] / path.duration, '%')}" for kind in kinds]
    axis.stackplot(x, 100 * shares, labels=labels, colors=[_PARTS[kind] for kind in kinds])
    axis.set_ylim(0, 100)
    axis.set_ylabel("% of the time", fontsize=9)
    _legend(axis)


def _share_of_ranks(result: Result, axis: Any) -> None:
    scale = _time_axis(result, axis)
    ranks = len(result.ranks)
    compute, blocked = time_shares(result.records, ranks, result.makespan_ps, _BINS, ranks)
    x = (np.arange(_BINS) + 0.5) * (result.makespan / _BINS / scale)
    axis.set_facecolor(IDLE)
    axis.stackplot(x, 100 * compute[0], 100 * blocked[0], colors=(COMPUTE, COMMUNICATION))
    axis.set_ylim(0, 100)
    axis.set_ylabel("% of the ranks", fontsize=9)


def _totals(result: Result, axis: Any) -> None:
    scale = _time_axis(result, axis)
    ranks = result.ranks
    many = len(ranks) > _ROWS
    order = np.argsort(ranks["compute"], kind="stable") if many else ranks["rank"]
    left = np.zeros(len(ranks))
    for name, color in (("compute", COMPUTE), ("communication", COMMUNICATION), ("idle", IDLE)):
        width = ranks[name][order] / scale
        y = np.arange(len(ranks))
        if many:
            axis.fill_betweenx(y, left, left + width, color=color, label=name, linewidth=0)
        else:
            axis.barh(y, width, left=left, color=color, label=name, height=0.8)
        left = left + width
    axis.set_ylim(len(ranks) - 0.5, -0.5)
    axis.set_ylabel("ranks, by compute" if many else "rank", fontsize=9)
    axis.yaxis.get_major_locator().set_params(integer=True)
    axis.set_xlabel(axis.get_xlabel().replace("time", "total time"), fontsize=9)
    _legend(axis)


def _links(result: Result, axis: Any) -> None:
    links, scale = result.links, _time_axis(result, axis)
    carried = np.flatnonzero(links["bytes"] > 0)
    order = carried[np.argsort(-links["utilisation"][carried], kind="stable")]
    use = 100 * result.link_use[order].astype(np.float64)
    if len(order) > _LINK_ROWS:
        x = np.arange(use.shape[1] + 1) * result.bin / scale
        last = np.concatenate([use, use[:, -1:]], axis=1)
        low, high = np.percentile(last, (10, 90), axis=0)
        color = _LINES[0]
        axis.fill_between(
            x, low, high, step="post", color=color, alpha=0.25, linewidth=0, label="80 % of links"
        )
        axis.step(x, last.mean(axis=0), where="post", color=color, linewidth=1.2, label="mean")
        axis.step(
            x, last.max(axis=0), where="post", color=_LINES[1], linewidth=0.9, label="fullest link"
        )
        axis.set_ylim(0, 105)
        axis.set_ylabel(f"% of bandwidth\n({len(order):,} links)", fontsize=9)
        _legend(axis)
        return
    extent = (0, use.shape[1] * result.bin / scale, len(order) - 0.5, -0.5)
    top = next((limit for limit in (1, 2, 5, 10, 20, 50) if use.max() <= limit), 100)
    shown = axis.imshow(
        use, aspect="auto", extent=extent, cmap="Blues", vmin=0, vmax=top, interpolation="nearest"
    )
    names = [f"{links['source'][i]} → {links['target'][i]}" for i in order]
    axis.set_yticks(np.arange(len(order)), names, fontsize=8 if len(order) <= 12 else 6)
    bar = axis.figure.colorbar(shown, ax=axis, pad=0.01, fraction=0.03)
    bar.set_label("% of bandwidth", fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _latencies(result: Result, axis: Any) -> None:
    longest = max(queue.latency.max() for queue in result.queues if len(queue.latency))
    steps = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))
    scale, name = next((s for s in steps if longest >= 2 * s[0]), steps[-1])
    for number, queue in enumerate(result.queues):
        latency = np.sort(queue.latency) / scale
        if not len(latency):
            continue
        color = _LINES[number % len(_LINES)]
        share = np.arange(1, len(latency) + 1) * (100 / len(latency))
        p50, p90, p99 = np.percentile(latency, (50, 90, 99))
        label = f"{queue.name}: p50 {p50:.3g}, p90 {p90:.3g}, p99 {p99:.3g} {name}"
        axis.step(latency, share, where="post", color=color, linewidth=1.4, label=label)
        axis.plot([p50, p90, p99], [50, 90, 99], "o", color=color, markersize=4)
    axis.set_xlim(0, None)
    axis.set_ylim(0, 101)
    axis.set_xlabel(f"latency of a request ({name})", fontsize=9)
    axis.set_ylabel("% of answered", fontsize=9)
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)
    axis.legend(fontsize=8, frameon=False, loc="lower right")
