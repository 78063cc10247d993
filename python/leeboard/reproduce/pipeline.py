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
from leeboard.reproduce.settings import CONDITIONS, MATCHED, STAGES, Arm, Settings

# Raise a stage's number when its code changes what its files hold.
_VERSIONS = {"states": 1, "texts": 1}
RESULTS = "results.json"


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
    ) -> None:
        if workers < 0:
            raise ValueError(f"workers: got {workers}, expected 0 or more")
        self.settings = settings
        self.out = out
        self._workers = workers
        self._device = device
        self._redo = redo
        self._demo = Demo(
            settings.demo,
            out,
            threads=threads,
            device=device,
            redo=redo,
            say=say,
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
        from leeboard.reproduce.formats import mixture
        from leeboard.reproduce.results import gather

        began = time.perf_counter()
        corpus = self._demo.corpus()
        tokens = self._demo.tokens(corpus)
        target = self._demo.target(tokens, mixture)
        states = self._states(tokens, target)
        texts = self._texts(corpus, tokens, target)
        threshold, anchors = self._threshold(target, states, texts)
        arms, failures = self._arms(threshold, target, states, texts)
        if not arms:
            raise RuntimeError(f"no training ended well; the first: {failures[0].error}")
        seconds = time.perf_counter() - began
        stages = (corpus, tokens, target, states, texts, *anchors, *arms.values())
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
                "corpus": read_json(corpus.path / "summary.json"),
                "target": {
                    name: value
                    for name, value in read_json(target.path / "summary.json").items()
                    if name != "loss"
                },
                "texts": read_json(texts.path / "summary.json"),
            },
        )
        write_json(self.out / RESULTS, results)
        return results, failures

    def _states(self, tokens: Stage, target: Stage) -> Stage:
        def build(folder: Path) -> None:
            from leeboard.demo.target import load_target
            from leeboard.demo.tokens import load_documents
            from leeboard.reproduce.material import keep_states

            with torch_threads(self._demo.threads):
                keep_states(
                    self.settings,
                    load_target(target.path).to(self._device),
                    load_documents(tokens.path / "train.npz"),
                    folder,
                    self._demo.title("states"),
                )

        picked = self._pick("seed", "pool_rows", "row", "cached")
        stage = self._stage("states", build, picked, tokens, target)
        size = sum(path.stat().st_size for path in stage.path.rglob("*") if path.is_file())
        self._demo.done(
            stage,
            f"{self.settings.pool_rows:,} rows of {self.settings.row} tokens, {size / 1e6:.0f} MB",
        )
        return stage

    def _texts(self, corpus: Stage, tokens: Stage, target: Stage) -> Stage:
        def build(folder: Path) -> None:
            from leeboard.demo.target import load_target
            from leeboard.demo.tokens import load_tokenizer
            from leeboard.reproduce.material import held_texts

            with torch_threads(self._demo.threads):
                held, summary = held_texts(
                    self.settings,
                    load_target(target.path).to(self._device),
                    load_tokenizer(tokens.path / "tokenizer.json"),
                    read_functions(corpus, "heldout"),
                    self._demo.title("texts"),
                )
            held.save(folder)
            write_json(folder / "summary.json", summary)

        names = ("seed", "prompts", "checks", "prompt_tokens", "new_tokens", "contexts")
        picked = self._pick(*names, "context_tokens", "buckets", "row")
        stage = self._stage("texts", build, picked, corpus, tokens, target)
        loops = read_json(stage.path / "summary.json")["loops"][MATCHED]
        self._demo.done(
            stage,
            f"{self.settings.prompts} prompts in {len(CONDITIONS)} conditions, "
            f"{self.settings.buckets} lengths of context; {loops:.0%} of the texts loop",
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

    def _stage(
        self, name: str, build: Callable[[Path], None], settings: dict[str, Any], *inputs: Stage
    ) -> Stage:
        return self._demo.cache.run(
            name, build, version=_VERSIONS[name], settings=settings, inputs=inputs
        )

    def _pick(self, *names: str) -> dict[str, Any]:
        return {name: self.settings.to_dict()[name] for name in names}
