"""The training loop: any models, side by side, resumable at any checkpoint."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leeboard._progress import progress_bar
from leeboard.draft.training.checkpoint import Checkpoints, restore
from leeboard.draft.training.history import History
from leeboard.draft.training.logs import Logs
from leeboard.draft.training.parallel import Processes
from leeboard.draft.training.settings import LoopSettings


class Interrupted(KeyboardInterrupt):
    """A training was asked to stop (Ctrl-C, SIGTERM), and did so after a whole step.

    Attributes:
        signal: Number of the signal.
        step: Optimizer steps done.
        checkpoint: The checkpoint that was saved then.
    """

    def __init__(self, number: int, step: int, checkpoint: Path) -> None:
        super().__init__(
            f"stopped after step {step}; the checkpoint {checkpoint} has all of it: the same call "
            "goes on from there"
        )
        self.signal = number
        self.step = step
        self.checkpoint = checkpoint


@dataclasses.dataclass(frozen=True)
class Terms:
    """What one model learns from one part of a step's data.

    Attributes:
        loss: Scalar. The losses of a step's parts add up to the step's loss; those of several
            processes are averaged.
        values: More scalars to record, which add up in the same way.
    """

    loss: Tensor
    values: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)


Parts = Callable[[int], Iterable[Mapping[str, Terms]]]

# The running average of a weight, in the optimizer's state.
_AVERAGE = "average"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watch:
    """What happens beside the steps.

    Attributes:
        evaluate: Called with the number of steps done; returns numbers on held-out data.
        evaluate_every: Steps between evaluations; one follows the last step in any case.
        evaluated: Called with the history after each evaluation.
        stop: Called with the history after an evaluation; true ends the training.
        on_step: Called after each step with its number, from 1, and what is recorded of it.
        logs: Where the numbers go.
    """

    evaluate: Callable[[int], Mapping[str, float]] | None = None
    evaluate_every: int | None = None
    evaluated: Callable[[History], None] | None = None
    stop: Callable[[History], bool] | None = None
    on_step: Callable[[int, Mapping[str, float]], None] | None = None
    logs: Logs | None = None


def fit(
    models: Mapping[str, nn.Module],
    parts: Parts,
    settings: LoopSettings,
    *,
    checkpoints: Checkpoints | None = None,
    watch: Watch | None = None,
    processes: Processes | None = None,
    title: str = "training",
    progress: bool = True,
) -> History:
    """Train models side by side with AdamW (0.9, 0.95).

    The models share the data but no parameter: each has its own loss and its own gradient clip, so
    each trains as it would alone. A step follows from its number and the weights alone, so that a
    run that goes on from a checkpoint does bit by bit what it would have done uninterrupted.

    With checkpoints, Ctrl-C and SIGTERM end it after the step that is under way, with a checkpoint;
    a second Ctrl-C at once, without one.

    Args:
        models: The models; parameters that need no gradient are left alone.
        parts: Maps a step's number, from 0, to the parts of its data, one after another: by model,
            the loss to go backward from and what to record. A part's graph is freed before the
            next is asked for. Must follow from the number alone.
        settings: The optimizer's numbers.
        checkpoints: Where to save to now and then, and to resume from.
        watch: What else happens.
        processes: Those that share every step. Gradients must have been averaged over them when
            the last part's backward pass has ended, as `DistributedDataParallel` does.
        title: Shown in front of the progress bar.
        progress: Whether one is drawn.

    Returns:
        The history. With several models its columns bear their names: "name.loss".

    Raises:
        ArithmeticError: A loss or gradient is not finite. The weights are those before the step.
        Interrupted: A signal asked for the end.
        ValueError: There is a checkpoint of another training, or a damaged one.
    """
    run = _Run(models, settings, checkpoints, watch or Watch(), processes or Processes())
    try:
        return run.go(parts, title, progress)
    finally:
        if run.watch.logs is not None:
            run.watch.logs.close()


class _Run:
    """One call of `fit`."""

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        settings: LoopSettings,
        checkpoints: Checkpoints | None,
        watch: Watch,
        processes: Processes,
    ) -> None:
        self.models, self.settings, self.watch = models, settings, watch
        self.checkpoints, self.processes = checkpoints, processes
        self.parameters = {
            owner: [p for p in model.parameters() if p.requires_grad]
            for owner, model in models.items()
        }
        self.trained = {
            f"{owner}.{name}": parameter
            for owner, model in models.items()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        if not self.trained:
            raise ValueError("models: expected parameters to train, found none")
        # Only these have a fused AdamW in every version of torch.
        kinds = {parameter.device.type for parameter in self.trained.values()}
        self.optimizer = torch.optim.AdamW(
            self.trained.values(),
            lr=settings.lr,
            betas=(0.9, 0.95),
            weight_decay=settings.weight_decay,
            fused=kinds <= {"cpu", "cuda"},
        )
        self.history = History()
        self.kept: Path | None = None

    def go(self, parts: Parts, title: str, progress: bool) -> History:
        steps, watch = self.settings.steps, self.watch
        self._resume()
        if watch.logs is not None and self.processes.first:
            watch.logs.begin(self.history)
        first = len(self.history)
        before = self.history.steps["seconds"][-1] if first else 0.0
        began = saved = time.monotonic()
        listening = nullcontext(list[int]()) if self.checkpoints is None else _signals()
        quiet = not (progress and self.processes.first)
        with progress_bar(title, steps, initial=first, quiet=quiet) as bar, listening as caught:
            # A run that was killed between its last step and its end has done the rest already.
            ended = first > 0 and self._look(first)
            for step in range(first, steps):
                if ended:
                    break
                asked = self._step(step, parts, before, began, caught)
                bar.set_postfix_str(self._said(), refresh=False)
                bar.update()
                ended = self._look(step + 1)
                last = ended or step + 1 == steps
                if self._due(step + 1, saved) or last or asked:
                    self._save(step + 1)
                    saved = time.monotonic()
                if asked and not last and self.checkpoints is not None:
                    # The others wait until the checkpoint is there.
                    self.processes.any(False)
                    number = caught[0] if caught else signal.SIGTERM
                    raise Interrupted(number, step + 1, self.checkpoints.folder)
        self._take_average()
        return self.history

    def _resume(self) -> None:
        if self.checkpoints is None:
            return
        saved = self.checkpoints.latest()
        step = torch.tensor(0.0 if saved is None else saved.step, dtype=torch.float64)
        # All have looked when this is known, and none removes what another is about to read.
        if self.processes.any(bool(self.processes.mean(step).cpu() != step)):
            raise ValueError(
                f"{self.checkpoints.folder}: this process sees the checkpoint of step {step:.0f}, "
                "another one not the same, expected a folder that all processes see"
            )
        if saved is not None:
            self.history = restore(saved, self.trained, self.optimizer)
            self.kept = saved.record
            if self.processes.first:
                self.checkpoints.prune(saved.step)

    def _step(
        self, step: int, parts: Parts, before: float, began: float, caught: list[int]
    ) -> bool:
        """One optimizer step; whether any process was asked to stop."""
        settings = self.settings
        rate = settings.rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        sums: dict[str, Tensor] = {}
        for part in parts(step):
            for owner, terms in part.items():
                terms.loss.backward()  # type: ignore[no-untyped-call]
                for name, value in {"loss": terms.loss, **terms.values}.items():
                    column = self._column(owner, name)
                    value = value.detach().double()
                    sums[column] = sums[column] + value if column in sums else value
        norms = {
            self._column(owner, "grad_norm"): nn.utils.clip_grad_norm_(group, settings.clip)
            for owner, group in self.parameters.items()
        }
        device = next(iter(sums.values())).device
        flag = torch.tensor(float(bool(caught)), dtype=torch.float64, device=device)
        numbers = [*sums.values(), *(norm.double().to(device) for norm in norms.values()), flag]
        means = self.processes.mean(torch.stack(numbers)).tolist()
        values = dict(zip((*sums, *norms), means, strict=False))
        self._check_finite(step + 1, values)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._add_to_average(step)
        values["lr"] = rate
        values["seconds"] = before + time.monotonic() - began
        self.history.add_step(values)
        if self.watch.logs is not None and self.processes.first:
            self.watch.logs.step(step + 1, values)
        if self.watch.on_step is not None:
            self.watch.on_step(step + 1, values)
        return bool(means[-1] > 0)

    def _check_finite(self, step: int, values: Mapping[str, float]) -> None:
        wrong = {name: value for name, value in values.items() if not math.isfinite(value)}
        if not wrong:
            return
        self.optimizer.zero_grad()
        name, value = next(iter(wrong.items()))
        kept = "none has been saved" if self.kept is None else f"the last one is {self.kept}"
        raise ArithmeticError(
            f"step {step}: {name} is {value}, expected a finite number; the weights are those "
            f"before the step. A lower lr, a longer warmup or float32 may help. Checkpoints: {kept}"
        )

    def _look(self, done: int) -> bool:
        """Evaluate if it is time and not done; whether the training has come to its end."""
        watch = self.watch
        every = watch.evaluate_every
        ended = done == self.settings.steps
        if watch.evaluate is None or not (ended or (every and done % every == 0)):
            return ended
        known = self.history.evaluations.get("step", [])
        if not known or known[-1] != done:
            with self._averaged():
                values = {"step": float(done), **watch.evaluate(done)}
            self.history.add_evaluation(values)
            if watch.logs is not None and self.processes.first:
                watch.logs.evaluation(done, values)
            if watch.evaluated is not None:
                watch.evaluated(self.history)
        if watch.stop is not None:
            ended = self.processes.any(watch.stop(self.history)) or ended
        return ended

    @torch.no_grad()
    def _add_to_average(self, step: int) -> None:
        if self.settings.average is None:
            return
        # Short at first, so that the first weights are soon forgotten.
        kept = min(self.settings.average, (1 + step) / (10 + step))
        for parameter in self.trained.values():
            # Beside the optimizer's own averages, which checkpoints hold.
            state = self.optimizer.state[parameter]
            if _AVERAGE not in state:
                state[_AVERAGE] = parameter.detach().clone()
            state[_AVERAGE].lerp_(parameter, 1 - kept)

    @torch.no_grad()
    def _take_average(self) -> None:
        for parameter in self.trained.values():
            if _AVERAGE in self.optimizer.state.get(parameter, {}):
                parameter.copy_(self.optimizer.state[parameter][_AVERAGE])

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The models have their averages, if there are any."""
        if self.settings.average is None:
            yield
            return
        before = [parameter.detach().clone() for parameter in self.trained.values()]
        self._take_average()
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self.trained.values(), before, strict=True):
                    parameter.copy_(value)

    def _due(self, done: int, saved: float) -> bool:
        every, seconds = self.settings.checkpoint_every, self.settings.checkpoint_seconds
        by_count = every is not None and done % every == 0
        return by_count or (seconds is not None and time.monotonic() - saved >= seconds)

    def _save(self, done: int) -> None:
        if self.checkpoints is not None and self.processes.first:
            self.kept = self.checkpoints.save(done, self.trained, self.optimizer, self.history)

    def _said(self) -> str:
        """The losses of the last step."""
        losses = {owner: self.history.steps[self._column(owner, "loss")] for owner in self.models}
        if len(losses) == 1:
            return f"loss {next(iter(losses.values()))[-1]:.3f}"
        return "loss " + ", ".join(f"{owner} {past[-1]:.2f}" for owner, past in losses.items())

    def _column(self, owner: str, name: str) -> str:
        return name if len(self.models) == 1 else f"{owner}.{name}"


@contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that gets the numbers of signals that ask for the end, in place of their effect."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread may say what signals do.
        yield caught
        return

    def catch(number: int, frame: Any) -> None:
        # A launcher passes on the signal that the terminal has sent already.
        launched = "TORCHELASTIC_RUN_ID" in os.environ
        if number == signal.SIGINT and signal.SIGINT in caught and not launched:
            raise KeyboardInterrupt
        if not caught:
            print("\nstopping after this step, with a checkpoint", file=sys.stderr, flush=True)
        caught.append(number)

    before = {number: signal.signal(number, catch) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
