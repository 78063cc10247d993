"""Ranks that stand still: what is told of them, and what is not."""

from __future__ import annotations

import importlib.util
import operator
import sys
import threading
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

from leeboard.sim.distributed import watch


class SlowLoader:
    """Loads a module by waiting for a lock in C: the innermost frame is the import system's."""

    exec_module = staticmethod(operator.methodcaller("hold"))

    def __init__(self, lock: Any) -> None:
        self.lock = lock

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        module.hold = self.lock.acquire  # type: ignore[attr-defined]
        return module


def test_an_import_that_is_only_slow_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "IMPORT", 0.0)
    lock = threading.Lock()
    spec = importlib.util.spec_from_loader("slow_module", SlowLoader(lock))  # type: ignore[arg-type]
    assert spec is not None
    finder = SimpleNamespace(find_spec=lambda name, *_: spec if name == spec.name else None)
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    lock.acquire()
    thread = threading.Thread(target=lambda: __import__("slow_module"))
    thread.start()
    try:
        while True:  # until it is there
            frame = sys._current_frames()[thread.ident or 0]
            if frame.f_code.co_name == "_load_unlocked":
                break
        # Even where another rank imports, too.
        ranks = {1: SimpleNamespace(number=1, thread=thread.ident)}
        holder = SimpleNamespace(number=0, thread=thread.ident, run=SimpleNamespace(ranks=ranks))
        looks = watch.Watch(SimpleNamespace(holder=holder))  # type: ignore[arg-type]
        assert frame.f_code.co_filename == watch._IMPORT
        looks.look()
    finally:
        lock.release()
        thread.join()
        sys.modules.pop("slow_module", None)
