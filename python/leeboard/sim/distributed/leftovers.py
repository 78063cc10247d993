"""Settings of the process that ranks share: a run may change them, and they are put back after it."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch


@contextmanager
def put_back() -> Iterator[None]:
    """Keep the working directory, Python's and torch's settings as they are before the context."""
    folder = os.getcwd()
    limit, hook = sys.getrecursionlimit(), threading.excepthook
    settings = _settings()
    try:
        yield
    finally:
        with suppress(OSError):
            os.chdir(folder)
        sys.setrecursionlimit(limit)
        threading.excepthook = hook
        anomaly, deterministic, precision = settings
        # Setting some of these imports much of torch: only where there is need.
        now = _settings()
        if now[0] != anomaly:
            torch.autograd.set_detect_anomaly(*anomaly)
        if now[1] != deterministic:
            torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
        if now[2] != precision:
            torch.set_float32_matmul_precision(precision)


def _settings() -> tuple[tuple[bool, bool], tuple[bool, bool], str]:
    return (
        (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        torch.get_float32_matmul_precision(),
    )
