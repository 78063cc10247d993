"""Training a drafter on a target's states: `train_drafter`."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from leeboard._files import write_json
from leeboard._version import __version__
from leeboard.draft.checkpoint import save_drafter
from leeboard.draft.config import DrafterConfig
from leeboard.draft.loss import ChainLoss, count_marked, count_rows
from leeboard.draft.mtp import MTPConfig
from leeboard.draft.protocol import Drafter
from leeboard.draft.training.checkpoint import Checkpoints, only_training
from leeboard.draft.training.history import History
from leeboard.draft.training.layout import Data
from leeboard.draft.training.logs import Logs, check_tensorboard
from leeboard.draft.training.loop import Terms, Watch, fit
from leeboard.draft.training.parallel import Processes, in_parallel, processes
from leeboard.draft.training.prepare import Prepared, prepare
from leeboard.draft.training.rows import shuffled
from leeboard.draft.training.settings import TrainSettings
from leeboard.draft.training.unrolled import InBfloat16, Unrolled

# Where a training's folder holds what.
CHECKPOINTS, BEST, FINAL, RECORD = "checkpoints", "best", "drafter", "run.json"


@dataclasses.dataclass(frozen=True)
class Trained:
    """Result of `train_drafter`.

    Attributes:
        drafter: In eval mode.
        history: Numbers of every step and evaluation.
        steps: Optimizer steps done, those before a resume included.
        path: Folder of the saved drafter, for `load_drafter` and serving engines; None without
            `out`.
    """

    drafter: Drafter
    history: History
    steps: int
    path: Path | None


def train_drafter(
    target: Any,
    data: Data,
    *,
    config: DrafterConfig | MTPConfig | None = None,
    drafter: Drafter | None = None,
    tokenizer: Any = None,
    out: str | os.PathLike[str] | None = None,
    settings: TrainSettings | None = None,
    states: str | os.PathLike[str] | None = None,
    heldout: Data | None = None,
    stop: Callable[[History], bool] | None = None,
    on_step: Callable[[int, Mapping[str, float]], None] | None = None,
    resume: bool = True,
    progress: bool = True,
    tensorboard: bool = False,
    say: Callable[[str], None] | None = None,
) -> Trained:
    """Train a drafter to continue a target's states, by its own unrolled chain (EAGLE-3's
    train-time test, arXiv:2503.01840).

    What the unroll feeds back from step to step is what decoding feeds back. The loss is
    `chain_loss`: at every marked token, at each of `settings.ttt` chain steps, the drafter is to
    match the target's distribution.

    With `out`, the training can be stopped and killed at any time: the same call goes on from the
    last checkpoint and does bit by bit what it would have done uninterrupted (on the same device,
    with as many threads and processes). The folder gets

        drafter/          the trained drafter, for `load_drafter` and serving engines
        best/             the one with the lowest held-out loss so far
        log.csv           numbers of every step; evaluations.csv, those on held-out data
        checkpoints/      the newest checkpoint: safetensors and JSON
        run.json          what the training was told
        tensorboard/      with `tensorboard`

    Under `torchrun`, or where torch.distributed is set up, the processes share each step's rows;
    the first one writes and draws. `out` must be a folder that all of them see.

    Args:
        target: A Hugging Face causal LM, on the device to train on, in whatever dtype. It is not
            changed.
        data: A JSONL file of chats or text, `Rows`, or states (`OnlineStates`, `CachedStates`).
        config: What the drafter is to be, an EAGLE-3 drafter or an MTP head; None for
            `DrafterConfig.for_target(target.config)`. Where its draft vocabulary is smaller than the
            target's, the most frequent tokens to learn are taken.
        drafter: One to go on with, in float32; it is trained in place. Excludes `config`. To resume
            its training, give it as it was at first.
        tokenizer: Of the target, with a chat template for chats; None to load it from where the
            target was loaded from. Of use for a JSONL file alone.
        out: Folder of the results; None to write nothing.
        settings: All numbers; None for the defaults.
        states: Folder to keep the target's states in, so that it runs once over the data; None to
            run it on every batch.
        heldout: What to evaluate on, as `data`; None for a share of `data`.
        stop: Called with the history after every evaluation; true ends the training.
        on_step: Called after every step with its number, from 1, and what is recorded of it.
        resume: Whether to go on from a checkpoint in `out`; False removes it.
        progress: Whether a progress bar is drawn.
        tensorboard: Whether logs for TensorBoard are written too; needs `out`.
        say: Called with lines on what is trained on what.

    Returns:
        A `Trained`.

    Raises:
        ArithmeticError: A loss or gradient is not finite; the message names the step. The last
            checkpoint is kept.
        FileNotFoundError: A file is missing.
        ImportError: A package that is needed is not installed; the message says which.
        Interrupted: With `out`, Ctrl-C or SIGTERM came: a checkpoint was saved. It is a
            KeyboardInterrupt.
        OSError: A file could not be written.
        RuntimeError: Another process trains in `out`.
        ValueError: Settings, data, target and drafter do not fit each other, or `out` holds another
            training: found before a step is done.
    """
    settings = settings or TrainSettings()
    if tensorboard:
        check_tensorboard()
        if out is None:
            raise ValueError("tensorboard: got True without out, expected a folder to write to")
    device = target.get_input_embeddings().weight.device
    group = processes(device)
    with _own_randomness(device):
        group.check_batch(settings.batch, settings.accumulate)
        told = say if say is not None and group.first else _silent
        prepared = prepare(
            target,
            data,
            config=config,
            drafter=drafter,
            tokenizer=tokenizer,
            settings=settings,
            states=states,
            heldout=heldout,
            progress=progress and group.first,
            group=group,
            say=told,
        )
        training = _Training(prepared, settings, group)
        folder = None if out is None else Path(out)
        with contextlib.ExitStack() as held:
            if folder is not None:
                group.first_does(lambda: held.enter_context(only_training(folder)))
            if folder is not None and not resume:
                # None may look for a checkpoint before.
                group.first_does(Checkpoints(folder / CHECKPOINTS, {}).remove)
            return training.run(folder, stop, on_step, progress, tensorboard, told)


class _Training:
    """A drafter, its data and settings, ready to go."""

    def __init__(self, prepared: Prepared, settings: TrainSettings, group: Processes) -> None:
        self.prepared, self.settings, self.group = prepared, settings, group
        self.drafter = prepared.drafter
        self.device = self.drafter.device
        exact = Unrolled(prepared, settings)
        low = settings.precision == "bfloat16"
        self.unrolled: nn.Module = InBfloat16(exact) if low else exact
        if group.size > 1:
            self.unrolled = in_parallel(self.unrolled)
        self.order: tuple[int, list[int]] = (-1, [])

    def run(
        self,
        out: Path | None,
        stop: Callable[[History], bool] | None,
        on_step: Callable[[int, Mapping[str, float]], None] | None,
        progress: bool,
        tensorboard: bool,
        say: Callable[[str], None],
    ) -> Trained:
        settings, prepared = self.settings, self.prepared
        loop = settings.loop(len(prepared.train))
        identity = {"steps": loop.steps, **prepared.identity}
        checkpoints = None if out is None else Checkpoints(out / CHECKPOINTS, identity)
        logs = None
        if out is not None:
            logs = Logs(out, tensorboard=tensorboard)
            found = checkpoints.latest() if checkpoints is not None else None
            if found is not None:
                say(f"resuming after step {found.step} of {loop.steps}")
            self.group.first_does(lambda: _record(out, identity))

        def evaluated(history: History) -> None:
            losses = history.evaluations["loss"]
            if out is not None and self.group.first and losses[-1] <= min(losses):
                save_drafter(cast(Any, self.drafter), out / BEST)

        every = settings.evaluate_every or max(1, -(-loop.steps // 10))
        watch = Watch(
            evaluate=self._evaluate if prepared.heldout else None,
            evaluate_every=every,
            evaluated=evaluated,
            stop=stop,
            on_step=on_step,
            logs=logs,
        )
        self.drafter.train()
        try:
            history = fit(
                {"drafter": self.drafter},
                self._parts,
                loop,
                checkpoints=checkpoints,
                watch=watch,
                processes=self.group,
                progress=progress,
            )
        finally:
            self.drafter.eval()
        path = None
        if out is not None:
            path = out / FINAL
            if self.group.first:
                save_drafter(cast(Any, self.drafter), path)
        return Trained(self.drafter, history, len(history), path)

    def _parts(self, step: int) -> Iterator[Mapping[str, Terms]]:
        """The step's rows that are this process's, in parts."""
        settings, size = self.settings, self.group.size
        seed = np.random.SeedSequence([settings.seed, step, self.group.rank])
        torch.manual_seed(int(seed.generate_state(1, np.uint64)[0] >> 1))
        mine = self.group.share(self._indices(step))
        part = len(mine) // settings.accumulate
        batches = [
            self.prepared.source.batch(mine[i : i + part]).to(self.device)
            for i in range(0, len(mine), part)
        ]
        # Of all parts and processes: each row then counts the same wherever it is.
        rows = torch.zeros(2, settings.ttt, dtype=torch.float64, device=self.device)
        for batch in batches:
            rows[0] += count_marked(batch, settings.ttt)
            rows[1] += count_rows(self.drafter, batch, settings.ttt)
        marked, valid = self.group.total(rows) / size
        while batches:
            # The last part's backward pass averages the gradients over the processes.
            alone: AbstractContextManager[None] = contextlib.nullcontext()
            if len(batches) > 1 and isinstance(self.unrolled, DistributedDataParallel):
                alone = self.unrolled.no_sync()
            with alone:
                result: ChainLoss = self.unrolled(batches.pop(0), valid.float())
                hits = result.step_accuracies.double() * result.step_rows
                values = {
                    **_by_step("loss", result.step_losses),
                    **_by_step("accuracy", hits / marked.clamp(min=1e-9)),
                }
                yield {"drafter": Terms(result.loss, values)}

    def _indices(self, step: int) -> list[int]:
        """The rows of a step: consecutive ones of all epochs' orders, one after another."""
        train, batch = self.prepared.train, self.settings.batch
        indices = []
        for i in range(step * batch, (step + 1) * batch):
            epoch, place = divmod(i, len(train))
            if self.order[0] != epoch:
                order = shuffled(len(train), self.settings.seed, epoch).tolist()
                self.order = (epoch, order)
            indices.append(train[self.order[1][place]])
        return indices

    @torch.no_grad()
    def _evaluate(self, done: int) -> Mapping[str, float]:
        """Means over the held-out rows of all processes."""
        settings, heldout = self.settings, self.prepared.heldout
        steps = settings.ttt
        names = ("loss", "accuracy", "overlap")
        sums = torch.zeros(len(names) + 2, steps, dtype=torch.float64, device=self.device)
        mine = heldout[self.group.rank :: self.group.size]
        part = max(1, settings.batch // settings.accumulate // self.group.size)
        source = self.prepared.heldout_source
        unrolled = self.unrolled
        if isinstance(unrolled, DistributedDataParallel):
            unrolled = unrolled.module
        self.drafter.eval()
        for i in range(0, len(mine), part):
            batch = source.batch(mine[i : i + part]).to(self.device)
            result: ChainLoss = unrolled(batch, torch.ones(steps, device=self.device))
            sums += torch.stack(
                [
                    result.step_losses,
                    result.step_accuracies * result.step_rows,
                    result.step_overlaps * result.step_valid,
                    result.step_rows,
                    result.step_valid,
                ]
            )
        self.drafter.train()
        total = self.group.total(sums)
        marked, valid = total[-2].clamp(min=1), total[-1].clamp(min=1)
        means = total[:-2] / torch.stack([valid, marked, valid])
        weights = torch.tensor(settings.weights, dtype=torch.float64, device=self.device)
        values = {"loss": float((means[0] * weights).sum())}
        for name, row in zip(names, means.tolist(), strict=True):
            values.update({f"{name}@{j + 1}": value for j, value in enumerate(row)})
        return values


def _by_step(name: str, values: Tensor) -> dict[str, Tensor]:
    """One entry per chain step, counted from 1."""
    return {f"{name}@{j + 1}": value for j, value in enumerate(values)}


@contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    """torch's random numbers afterwards go on as if nothing had been drawn."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


def _record(out: Path, identity: Mapping[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / RECORD, {"leeboard": __version__, **identity})


def _silent(text: str) -> None:
    return None
