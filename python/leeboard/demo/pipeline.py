"""The demo's stages in order. A stage's imports happen only when it has work to do."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import leeboard
from leeboard._files import read_json, write_json
from leeboard.demo import corpus as corpora
from leeboard.demo.settings import STAGES, Settings
from leeboard.demo.stages import Stage, StageCache

if TYPE_CHECKING:
    from leeboard.demo.tokens import Documents

# Raise a stage's number when its code changes what its files hold.
_VERSIONS = {"corpus": 1, "tokens": 1, "target": 1, "drafters": 1, "decode": 1}


class Demo:
    """One run of the demo.

    Args:
        settings: What to train and decode.
        out: Folder of the results; stages go to `out/stages`.
        threads: Threads for torch.
        device: Where the target is trained.
        redo: Name of a stage to run again, along with those after it.
        say: Called with a line for the reader when a stage is done.
        build: Whether stages that the cache does not hold are run; else they are an error.
        stages: Names of all stages of the run, for the titles.
    """

    def __init__(
        self,
        settings: Settings,
        out: Path,
        *,
        threads: int,
        device: str = "cpu",
        redo: str | None = None,
        say: Callable[[str], None] = print,
        build: bool = True,
        stages: Sequence[str] = STAGES,
    ) -> None:
        self.settings = settings
        self.threads = threads
        self.device = device
        self.cache = StageCache(out / "stages", redo, build=build)
        self._say = say
        self._stages = tuple(stages)

    def run(self) -> dict[str, Any]:
        """Run the stages that the cache does not hold, and return the results, JSON-ready."""
        began = time.perf_counter()
        corpus, tokens, target, drafters = self.trained()
        decode = self._decode(corpus, tokens, target, drafters)
        stages = (corpus, tokens, target, drafters, decode)
        return {
            "settings": dataclasses.asdict(self.settings),
            "versions": versions(),
            "threads": self.threads,
            "seconds": time.perf_counter() - began,
            "stages": {
                stage.name: {"seconds": stage.seconds, "reused": stage.reused} for stage in stages
            },
            "corpus": read_json(corpus.path / "summary.json"),
            "target": read_json(target.path / "summary.json"),
            "drafters": read_json(drafters.path / "summary.json"),
            "decode": read_json(decode.path / "decode.json"),
        }

    def trained(self) -> tuple[Stage, Stage, Stage, Stage]:
        """The stages corpus, tokens, target and drafters, run where the cache does not hold them."""
        corpus = self.corpus()
        tokens = self.tokens(corpus)
        target = self.target(tokens)
        return corpus, tokens, target, self._drafters(tokens, target)

    def corpus(self) -> Stage:
        """The functions of the standard library, in two parts by file."""
        s = self.settings
        root = corpora.standard_library()
        files = corpora.source_files(root)

        def build(folder: Path) -> None:
            functions = corpora.read_corpus(root, files)
            if s.max_functions is not None and len(functions) > s.max_functions:
                functions = random.Random(s.seed).sample(functions, s.max_functions)
            parts: dict[str, list[corpora.Function]] = {"train": [], "heldout": []}
            for function in functions:
                held = corpora.is_held_out(function.file, s.seed, s.heldout_share)
                parts["heldout" if held else "train"].append(function)
            summary: dict[str, Any] = {"python": platform.python_version()}
            for part, members in parts.items():
                write_json(folder / f"{part}.json", [dataclasses.asdict(f) for f in members])
                summary[part] = {"functions": len(members), "files": len({f.file for f in members})}
            write_json(folder / "summary.json", summary)

        stage = self._stage(
            "corpus",
            build,
            {
                **self._pick("seed", "max_functions", "heldout_share"),
                "python": platform.python_version(),
                "files": corpora.fingerprint(root, files),
            },
        )
        counts = read_json(stage.path / "summary.json")
        self.done(
            stage,
            f"{counts['train']['functions']:,} functions of the standard library, "
            f"{counts['heldout']['functions']:,} more held out",
        )
        return stage

    def tokens(self, corpus: Stage) -> Stage:
        """The tokenizer, and both parts as token ids."""

        def build(folder: Path) -> None:
            from leeboard._files import replacing
            from leeboard.demo.tokens import encode, save_documents, train_tokenizer

            functions = read_functions(corpus, "train")
            tokenizer = train_tokenizer(functions, self.settings.vocab_size)
            with replacing(folder / "tokenizer.json") as temporary:
                tokenizer.save(str(temporary))
            for part in ("train", "heldout"):
                documents = encode(tokenizer, read_functions(corpus, part))
                save_documents(folder / f"{part}.npz", documents)
                write_json(folder / f"{part}.json", {"tokens": len(documents.ids)})

        stage = self._stage("tokens", build, self._pick("vocab_size"), corpus)
        count = read_json(stage.path / "train.json")["tokens"]
        self.done(stage, f"{self.settings.vocab_size} BPE entries, {count:,} tokens of text")
        return stage

    def target(
        self, tokens: Stage, reshape: Callable[[Documents], Documents] | None = None
    ) -> Stage:
        """The trained target.

        Args:
            tokens: The stage of that name.
            reshape: What documents are turned into before they are learnt or tested on.
        """

        def build(folder: Path) -> None:
            from leeboard.demo.target import mean_loss, train_target
            from leeboard.demo.tokens import load_documents

            parts = [load_documents(tokens.path / f"{part}.npz") for part in ("train", "heldout")]
            if reshape is not None:
                parts = [reshape(part) for part in parts]
            with torch_threads(self.threads):
                target, history = train_target(
                    self.settings,
                    parts[0],
                    folder / "checkpoint",
                    self.title("target"),
                    self.device,
                )
                heldout = mean_loss(target, parts[1], self.settings)
            target.save_pretrained(folder)
            write_json(
                folder / "summary.json",
                {
                    "parameters": sum(p.numel() for p in target.parameters()),
                    "heldout_loss": heldout,
                    "loss": history["target"],
                },
            )

        names = ("target_tokens", "target_row", "target_batch", "target_lr")
        model = ("seed", "vocab_size", "layers", "hidden_size", "intermediate_size", "heads")
        settings = self._pick(*names, *model) | {"positions": self.settings.positions}
        if reshape is not None:
            settings["reshape"] = reshape.__qualname__
        stage = self._stage("target", build, settings, tokens)
        summary = read_json(stage.path / "summary.json")
        self.done(
            stage,
            f"Llama, {summary['parameters'] / 1e6:.1f} M weights, held-out loss "
            f"{summary['heldout_loss']:.2f} nats a token",
        )
        return stage

    def _drafters(self, tokens: Stage, target: Stage) -> Stage:
        def build(folder: Path) -> None:
            from leeboard.demo.drafters import save_drafters, train_drafters
            from leeboard.demo.target import load_target
            from leeboard.demo.tokens import load_documents

            with torch_threads(self.threads):
                drafters, history = train_drafters(
                    self.settings,
                    load_target(target.path),
                    load_documents(tokens.path / "train.npz"),
                    folder / "checkpoint",
                    self.title("drafters"),
                )
            save_drafters(folder, drafters)
            parameters = {
                name: sum(p.numel() for p in drafter.parameters() if p.requires_grad)
                for name, drafter in drafters.items()
            }
            write_json(folder / "summary.json", {"parameters": parameters, "loss": history})

        settings = self._pick(
            "seed", "drafter_tokens", "drafter_row", "drafter_batch", "drafter_lr", "ttt"
        )
        stage = self._stage("drafters", build, settings, tokens, target)
        self.done(stage, f"pre-norm and post-norm, chains of {self.settings.ttt} in training")
        return stage

    def _decode(self, corpus: Stage, tokens: Stage, target: Stage, drafters: Stage) -> Stage:
        def build(folder: Path) -> None:
            from leeboard.demo.drafters import load_drafters
            from leeboard.demo.evaluate import choose_prompts, decode_prompts
            from leeboard.demo.target import load_target
            from leeboard.demo.tokens import load_tokenizer

            tokenizer = load_tokenizer(tokens.path / "tokenizer.json")
            # One row at a time is too little work to share between threads.
            with torch_threads(1):
                results = decode_prompts(
                    self.settings,
                    load_target(target.path),
                    load_drafters(drafters.path),
                    tokenizer,
                    choose_prompts(read_functions(corpus, "heldout"), tokenizer, self.settings),
                    self.title("decode"),
                )
            write_json(folder / "decode.json", results)

        settings = self._pick("seed", "prompts", "prompt_tokens", "new_tokens", "depth", "ttt")
        settings["versions"] = versions()
        stage = self._stage("decode", build, settings, corpus, tokens, target, drafters)
        self.done(stage, f"{self.settings.prompts} held-out prompts")
        return stage

    def _stage(
        self, name: str, build: Callable[[Path], None], settings: dict[str, Any], *inputs: Stage
    ) -> Stage:
        return self.cache.run(
            name, build, version=_VERSIONS[name], settings=settings, inputs=inputs
        )

    def _pick(self, *names: str) -> dict[str, Any]:
        return {name: getattr(self.settings, name) for name in names}

    def title(self, name: str) -> str:
        """What a stage is called beside its progress."""
        return f"{self._stages.index(name) + 1}/{len(self._stages)} {name}"

    def done(self, stage: Stage, text: str) -> None:
        """Tell the reader that a stage is there, and what came out."""
        cost = "cached" if stage.reused else f"{stage.seconds:.0f} s"
        self._say(f"{self.title(stage.name):<12} {cost:>6}  {text}")


def read_functions(corpus: Stage, part: str) -> list[corpora.Function]:
    """The functions of one part, "train" or "heldout", of a corpus stage."""
    return [corpora.Function(**fields) for fields in read_json(corpus.path / f"{part}.json")]


def versions() -> dict[str, str]:
    """What figures depend on besides the settings."""
    return {
        "leeboard": leeboard.__version__,
        "torch": importlib.metadata.version("torch"),
        "transformers": importlib.metadata.version("transformers"),
    }


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads, and keep transformers from drawing bars of its own."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
