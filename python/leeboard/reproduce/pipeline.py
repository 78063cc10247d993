"""The stages of the reproduction in order, each cached, the arms in worker processes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leeboard._files import read_json, write_json
from leeboard.demo.pipeline import Demo, read_functions, torch_threads, versions
from leeboard.demo.stages import Stage
from leeboard.reproduce.arms import Task
from leeboard.reproduce.crew import Failure, run_tasks
from leeboard.reproduce.given import Given
from leeboard.reproduce.settings import MATCHED, STAGES, Arm, Settings

# Raise a stage's number when its code changes what its files hold.
_VERSIONS = {"states": 1, "texts": 1}
RESULTS = "results.json"
# Shares of the stages in a run of the default preset.
_SHARES = dict(zip(STAGES, (0.01, 0.01, 0.15, 0.03, 0.01, 0.08, 0.71), strict=True))


class Reproduction:
    """One run.

    Args:
        settings: What to train and count.
        out: Folder of the results; stages go to `out/stages`.
        threads: Threads for torch outside the arms.
        workers: Processes for the arms, one thread each; 0 trains them here, one after another.
        device: Where the target and the arms are trained.
        redo: Name of a stage to run again, along with those after it.
        say: Called with a line for the reader when a stage is done.
        given: A target and chats to run on; None for the small target, which is trained.
    """

    def __init__(
        self,
        settings: Settings,
        out: Path,
        *,
        threads: int = 2,
        workers: int = 2,
        device: str = "cpu",
        redo: str | None = None,
        say: Callable[[str], None] = print,
        given: Given | None = None,
    ) -> None:
        if workers < 0:
            raise ValueError(f"workers: got {workers}, expected 0 or more")
        self.settings = settings
        self.out = out
        self._workers = workers
        self._device = device
        self._redo = redo
        self._given = given
        self._say = say
        self._began = time.perf_counter()
        self._built = 0.0
        self._demo = Demo(
            settings.demo,
            out,
            threads=threads,
            device=device,
            redo=redo,
            say=self._told,
            stages=STAGES,
        )

    def run(self) -> tuple[dict[str, Any], list[Failure]]:
        """Run the stages that the cache does not hold.

        Returns:
            The results, JSON-ready, as they are in `out/results.json`, too; and the trainings that
            failed, which the results lack.

        Raises:
            RuntimeError: A training that sets the threshold failed, or all of the others.
        """
        from leeboard.reproduce.results import gather

        began = self._began = time.perf_counter()
        self._built = 0.0
        before, target, states, texts = self._material()
        threshold, anchors = self._threshold(target, states, texts)
        arms, failures = self._arms(threshold, target, states, texts)
        if not arms:
            raise RuntimeError(f"no training ended well; the first: {failures[0].error}")
        seconds = time.perf_counter() - began
        stages = (*before, target, states, texts, *anchors, *arms.values())
        results = gather(
            self.settings,
            arms,
            {
                "threshold": threshold,
                "versions": versions(),
                "workers": self._workers,
                "threads": self._demo.threads,
                "device": self._device,
                "seconds": seconds,
                "stages": {
                    stage.name: {"seconds": stage.seconds, "reused": stage.reused}
                    for stage in stages
                },
                **self._facts(before, target),
                "texts": read_json(texts.path / "summary.json"),
            },
        )
        write_json(self.out / RESULTS, results)
        return results, failures

    def _material(self) -> tuple[list[Stage], Stage, Stage, Stage]:
        """(what comes before the target, target, states, texts)."""
        if self._given is not None:
            target = self._given.stage()
            self._demo.done(target, self._given.target)
            return [], target, self._states(target), self._texts(target)
        from leeboard.reproduce.formats import mixture

        corpus = self._demo.corpus()
        tokens = self._demo.tokens(corpus)
        target = self._demo.target(tokens, mixture)
        inputs = [corpus, tokens]
        return inputs, target, self._states(target, *inputs), self._texts(target, *inputs)

    def _facts(self, before: list[Stage], target: Stage) -> dict[str, Any]:
        """What is to be said of corpus and target."""
        if self._given is not None:
            return {"corpus": {"file": self._given.data.name}, "target": {"name": target.path.name}}
        found = read_json(target.path / "summary.json")
        return {
            "corpus": read_json(before[0].path / "summary.json"),
            "target": {name: value for name, value in found.items() if name != "loss"},
        }

    def _states(self, target: Stage, *before: Stage) -> Stage:
        def build(folder: Path) -> None:
            from leeboard.demo.tokens import load_documents
            from leeboard.reproduce.material import keep_states, load_target, pool

            if self._given is not None:
                rows = self._given.rows(self.settings)
            else:
                rows = pool(self.settings, load_documents(before[1].path / "train.npz"))
            with torch_threads(self._demo.threads):
                model = load_target(target.path).to(self._device)
                keep_states(self.settings, model, rows, folder, self._demo.title("states"))
            write_json(folder / "summary.json", {"rows": len(rows)})

        picked = self._pick("seed", "pool_rows", "row", "cached", "heldout_share")
        stage = self._stage("states", build, picked, *before, target)
        size = sum(path.stat().st_size for path in stage.path.rglob("*") if path.is_file())
        rows = read_json(stage.path / "summary.json")["rows"]
        self._demo.done(stage, f"{rows:,} rows of {self.settings.row} tokens, {size / 1e6:.0f} MB")
        return stage

    def _texts(self, target: Stage, *before: Stage) -> Stage:
        def build(folder: Path) -> None:
            from leeboard.demo.tokens import load_tokenizer
            from leeboard.reproduce.material import held_texts, load_target

            title = self._demo.title("texts")
            with torch_threads(self._demo.threads):
                model = load_target(target.path).to(self._device)
                if self._given is not None:
                    held, summary = self._given.held(self.settings, model, title)
                else:
                    tokenizer = load_tokenizer(before[1].path / "tokenizer.json")
                    functions = read_functions(before[0], "heldout")
                    held, summary = held_texts(self.settings, model, tokenizer, functions, title)
            held.save(folder)
            write_json(folder / "summary.json", summary)

        names = ("seed", "prompts", "checks", "prompt_tokens", "new_tokens", "contexts")
        picked = self._pick(*names, "context_tokens", "buckets", "row", "heldout_share")
        stage = self._stage("texts", build, picked, *before, target)
        loops = read_json(stage.path / "summary.json")["loops"]
        self._demo.done(
            stage,
            f"{self.settings.prompts} prompts in {len(loops)} conditions, "
            f"{self.settings.buckets} lengths of context; {loops[MATCHED]:.0%} of the texts loop",
        )
        return stage

    def _threshold(self, target: Stage, states: Stage, texts: Stage) -> tuple[float, list[Stage]]:
        """What depth-1 acceptance all arms are to reach, and the stages that say so."""
        from leeboard.reproduce.arms import anchor_stage, work_on_anchor

        if self.settings.threshold is not None:
            return self.settings.threshold, []
        tasks = [
            self._task(self.settings.anchor, arm, "threshold", target, states, texts)
            for arm in self.settings.anchors()
        ]
        began = time.perf_counter()
        title = self._demo.title("threshold")
        found, failures = run_tasks(tasks, anchor_stage, work_on_anchor, self._workers, title)
        if failures:
            raise RuntimeError(f"{failures[0].arm.title}: {failures[0].error}")
        stages = list(found.values())
        levels = [read_json(stage.path / "training.json")["level"] for stage in stages]
        threshold = round(min(levels), 4)
        self._said("threshold", stages, began, f"acceptance at depth 1: {threshold:.1%}")
        return threshold, stages

    def _arms(
        self, threshold: float, target: Stage, states: Stage, texts: Stage
    ) -> tuple[dict[Arm, Stage], list[Failure]]:
        """The stages of all trainings."""
        from leeboard.reproduce.arms import arm_stage, work

        settings = dataclasses.replace(self.settings, threshold=threshold)
        tasks = [
            self._task(settings, arm, "arms", target, states, texts) for arm in settings.trainings()
        ]
        began = time.perf_counter()
        title = self._demo.title("arms")
        found, failures = run_tasks(tasks, arm_stage, work, self._workers, title)
        self._said("arms", list(found.values()), began, f"{len(found)} trainings")
        return found, failures

    def _task(self, settings: Settings, arm: Arm, name: str, *stages: Stage) -> Task:
        target, states, texts = stages
        redone = self._redo is not None and STAGES.index(self._redo) <= STAGES.index(name)
        return Task(
            settings,
            arm,
            self._demo.cache.root,
            target,
            states,
            texts,
            redo=redone,
            device=self._device,
            threads=1 if self._workers else self._demo.threads,
        )

    def _said(self, name: str, stages: list[Stage], began: float, text: str) -> None:
        reused = all(stage.reused for stage in stages)
        seconds = time.perf_counter() - began
        self._demo.done(Stage(name, "", self.out, seconds, reused), text)

    def _told(self, line: str) -> None:
        """Pass on what is said of a finished stage, with the time left in all if that is known."""
        name = next(stage for stage in STAGES if line.startswith(self._demo.title(stage)))
        at = STAGES.index(name)
        if "cached" not in line[:24]:
            self._built += _SHARES[name]
        left = sum(_SHARES[stage] for stage in STAGES[at + 1 :])
        # Reading and encoding the corpus says little of how fast the machine trains.
        if left and self._built > 0.02:
            seconds = (time.perf_counter() - self._began) * left / self._built
            line += f"; about {max(1, round(seconds / 60))} min left in all"
        self._say(line)

    def _stage(
        self, name: str, build: Callable[[Path], None], settings: dict[str, Any], *inputs: Stage
    ) -> Stage:
        if self._given is not None:
            settings = settings | self._given.facts()
        return self._demo.cache.run(
            name, build, version=_VERSIONS[name], settings=settings, inputs=inputs
        )

    def _pick(self, *names: str) -> dict[str, Any]:
        return {name: self.settings.to_dict()[name] for name in names}
