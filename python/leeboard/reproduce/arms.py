"""One training of one arm, and all that is counted on it: the work of a worker process."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leeboard._files import read_json, write_json, write_tensors
from leeboard.demo.pipeline import torch_threads
from leeboard.demo.stages import Stage, StageCache
from leeboard.draft import Batch, DrafterConfig, Eagle3Drafter, chain_loss, observe
from leeboard.draft.probe import Texts
from leeboard.draft.training.checkpoint import Checkpoints
from leeboard.draft.training.loop import Terms, Watch, fit
from leeboard.draft.training.settings import LoopSettings
from leeboard.reproduce.matching import UntilEqual
from leeboard.reproduce.material import load_target, open_states
from leeboard.reproduce.measure import Held, measure
from leeboard.reproduce.settings import ARMS, Arm, Settings

# Raise it when an arm's files would hold something else.
VERSION = 1
# Of the work of an arm, what is training.
_TRAINING = 0.75


@dataclasses.dataclass(frozen=True)
class Task:
    """What a worker is sent.

    Attributes:
        settings: Of the run.
        arm: The training.
        root: Folder of the stages.
        target: The stage of the target, or a folder with one.
        states: Stage of the training rows and the target's states on them.
        texts: Stage of the held-out texts.
        redo: Whether a finished stage is built again.
        device: Where to train.
        threads: Threads for torch.
        build: Whether a stage that is not there is built; else it is an error.
    """

    settings: Settings
    arm: Arm
    root: Path
    target: Stage
    states: Stage
    texts: Stage
    redo: bool = False
    device: str = "cpu"
    threads: int = 1
    build: bool = True


# What of the settings an arm's files depend on; the target and the texts are stages of their own.
_TRAINED = (
    "row",
    "batch",
    "lr",
    "warmup_steps",
    "average",
    "decay",
    "check_every",
    "smooth",
    "threshold",
    "most_steps",
)
_COUNTED = ("depth", "context_depth", "window", "sinks", "noise", "noise_prompts")


def arm_stage(task: Task) -> Stage:
    """The stage of an arm, trained and counted on: built now unless the cache holds it.

    Raises:
        FileNotFoundError: It is not there and `task.build` is False.
    """
    inputs = (task.target, task.states, task.texts)
    return _stage("arm", task, _build, _TRAINED + _COUNTED, inputs)


def anchor_stage(task: Task) -> Stage:
    """The stage of a training that sets the threshold; `task.settings` are `Settings.anchor`.

    Raises:
        FileNotFoundError: It is not there and `task.build` is False.
    """
    inputs = (task.target, task.states, task.texts)
    return _stage("anchor", task, _build_anchor, _TRAINED, inputs)


def _stage(
    kind: str,
    task: Task,
    build: Callable[[Task, Path], None],
    decides: Sequence[str],
    inputs: Sequence[Stage],
) -> Stage:
    name = f"{kind}-{task.arm.slug}"
    cache = StageCache(task.root, name if task.redo else None, build=task.build)
    settings = task.settings.to_dict()
    return cache.run(
        name,
        lambda folder: build(task, folder),
        version=VERSION,
        settings={name: settings[name] for name in decides} | {"norms": ARMS[task.arm.name]},
        inputs=inputs,
    )


def progress_of(task: Task) -> float:
    """The share of the work of an unfinished arm that its worker has noted."""
    try:
        return float(read_json(_progress_path(task)))
    except (OSError, ValueError):
        return 0.0


def work(task: Task) -> None:
    """`arm_stage`, for a worker process."""
    with torch_threads(task.threads):
        arm_stage(task)


def work_on_anchor(task: Task) -> None:
    """`anchor_stage`, for a worker process."""
    with torch_threads(task.threads):
        anchor_stage(task)


def new_drafter(target: Any, arm: Arm) -> Eagle3Drafter:
    """The drafter before training, with the target's embedding, head and final norm.

    Weights that two arms both have start out equal for equal seeds.
    """
    torch.manual_seed(arm.seed)
    drafter = Eagle3Drafter(DrafterConfig.for_target(target.config, **ARMS[arm.name]))
    drafter.copy_from_target(target)
    return drafter


def _build(task: Task, folder: Path) -> None:
    tell = _teller(_progress_path(task))
    settings = task.settings
    target = load_target(task.target.path).to(task.device)
    held = Held.load(task.texts.path, settings)
    began = time.process_time()
    drafter, record = train(
        task, target, held.checks, folder, lambda share: tell(_TRAINING * share)
    )
    trained = time.process_time()
    readings = measure(
        settings,
        target,
        drafter,
        held,
        task.arm.seed,
        lambda share: tell(_TRAINING + (1 - _TRAINING) * share),
    )
    record["seconds"] = {"train": trained - began, "measure": time.process_time() - trained}
    _save(folder, drafter)
    write_json(folder / "training.json", {"arm": dataclasses.asdict(task.arm), **record})
    write_json(folder / "readings.json", {name: r.to_dict() for name, r in readings.items()})
    _progress_path(task).unlink(missing_ok=True)


def _build_anchor(task: Task, folder: Path) -> None:
    target = load_target(task.target.path).to(task.device)
    checks = Held.load(task.texts.path, task.settings).checks
    tell = _teller(_progress_path(task))
    _, record = train(task, target, checks, folder, tell)
    write_json(folder / "training.json", {"arm": dataclasses.asdict(task.arm), **record})
    _progress_path(task).unlink(missing_ok=True)


def train(
    task: Task, target: Any, checks: Texts, folder: Path, tell: Callable[[float], None]
) -> tuple[Eagle3Drafter, dict[str, Any]]:
    """Train an arm until its depth-1 acceptance is that of the others (`UntilEqual`).

    Returns:
        The drafter and, JSON-ready, how it went.
    """
    settings, device = task.settings, torch.device(task.device)
    drafter = new_drafter(target, task.arm).to(device)
    head = target.get_output_embeddings().weight.detach()[drafter.t2d]
    weights = [settings.decay**j for j in range(task.arm.ttt)]
    source = open_states(settings, task.states.path, target, task.device)
    order = _Order(len(source), settings.batch, task.arm.seed)
    check_batches = _check_batches(target, drafter, checks)
    # The last check may come late by as much as lies between two.
    most = settings.most_steps + settings.check_every
    course = UntilEqual(settings, folder / "matching.json")

    def parts(step: int) -> Iterator[dict[str, Terms]]:
        tell(step / most)
        batch = _full(source.batch(order(step)))
        yield {"drafter": Terms(chain_loss(drafter, batch, head, step_weights=weights).loss)}

    def check(done: int) -> dict[str, float]:
        acceptance = depth_one(drafter, check_batches, head)
        course.check(done, acceptance)
        return {"acceptance": acceptance}

    loop = LoopSettings(
        steps=most,
        lr=settings.lr,
        schedule="constant",
        warmup=settings.warmup_steps,
        weight_decay=0.05,
        average=settings.average,
        checkpoint_seconds=20.0,
    )
    checkpoints = Checkpoints(folder / "checkpoints", {"arm": dataclasses.asdict(task.arm)})
    history = fit(
        {"drafter": drafter},
        parts,
        loop,
        checkpoints=checkpoints,
        watch=Watch(
            evaluate=check,
            evaluate_every=settings.check_every,
            stop=lambda history: course.ended(len(history)),
        ),
        title=task.arm.title,
        progress=False,
    )
    checkpoints.remove()
    steps = len(history)
    return drafter.eval(), {
        **course.record(),
        "steps": steps,
        "tokens": steps * settings.batch * settings.row,
        "depth_one": history.evaluations["acceptance"][-1],
        "loss": list(history.steps["loss"]),
    }


@torch.no_grad()
def depth_one(drafter: Eagle3Drafter, batches: list[Batch], head: Tensor) -> float:
    """Share of the tokens of greedy texts that the first step of a chain gets right."""
    hits = rows = 0.0
    for batch in batches:
        made = chain_loss(drafter, batch, head, step_weights=[1.0])
        count = float(made.step_rows[0])
        hits += float(made.step_accuracies[0]) * count
        rows += count
    return hits / max(rows, 1.0)


def _full(batch: Batch) -> Batch:
    """States as float32, however they were kept."""
    hiddens = tuple(state.float() for state in batch.hiddens)
    return dataclasses.replace(batch, hiddens=hiddens, final=batch.final.float())


def _check_batches(target: Any, drafter: Eagle3Drafter, texts: Texts) -> list[Batch]:
    ids = texts.ids
    places = torch.arange(ids.shape[1])
    # The first new token comes with the prompt; the second is the first to be drafted.
    drafted = (places > texts.prompts[:, None]) & (places < texts.lengths[:, None])
    return [
        observe(target, drafter, rows.to(target.device), marks.to(target.device))
        for rows, marks in zip(torch.split(ids, 16), torch.split(drafted, 16), strict=True)
    ]


class _Order:
    """The rows of each step: all of them in a shuffled order, then again in another one."""

    def __init__(self, rows: int, batch: int, seed: int) -> None:
        self._rows, self._batch, self._seed = rows, batch, seed
        self._epoch = -1
        self._shuffled: list[int] = []

    def __call__(self, step: int) -> list[int]:
        return [self._at(place) for place in range(step * self._batch, (step + 1) * self._batch)]

    def _at(self, place: int) -> int:
        epoch, at = divmod(place, self._rows)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(1000 * self._seed + epoch)
            self._shuffled = torch.randperm(self._rows, generator=generator).tolist()
            self._epoch = epoch
        return self._shuffled[at]


def _progress_path(task: Task) -> Path:
    return task.root / f".progress-{task.arm.slug}.json"


def _save(folder: Path, drafter: Eagle3Drafter) -> None:
    write_json(folder / "drafter.json", drafter.config.to_dict())
    write_tensors(folder / "drafter.safetensors", drafter.state_dict())


def _teller(path: Path) -> Callable[[float], None]:
    """Notes the share of the work that is done, once a second at most."""
    last = 0.0

    def tell(share: float) -> None:
        nonlocal last
        if time.monotonic() - last > 1.0:
            last = time.monotonic()
            write_json(path, share)

    return tell
