"""The protocol of a measurement: check the result, wait for quiet, time it between two limits."""

from __future__ import annotations

import dataclasses
import os
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from bench.run import ALLOCATOR, COMPILER


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bench")
    group.addoption("--bench-quick", action="store_true", help="few cases, short measurements")
    group.addoption("--bench-progress", action="store_true", help="one line per measurement")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_files", "bench_*.py")
    # Warnings of the peers' compilers are not ours to fail on.
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning")
    config.addinivalue_line("filterwarnings", "ignore::UserWarning")
    config.addinivalue_line("filterwarnings", "ignore::FutureWarning")
    if _timing(config):
        wrong = [n for n, v in {**ALLOCATOR, **COMPILER}.items() if os.environ.get(n) != v]
        if wrong or "torch" in sys.modules:
            raise pytest.UsageError(
                "benchmarks must start with the allocator's settings in force "
                f"({', '.join(wrong) or 'torch is already loaded'}): use `make bench` or "
                "`python bench/run.py`. Without --benchmark-enable the results are checked, "
                "not timed."
            )
    # Imported after the settings are known to be in force: it loads torch.
    from bench.cases import subjects

    try:
        subjects()
    except LookupError as error:
        raise pytest.UsageError(str(error)) from error


def _timing(config: pytest.Config) -> bool:
    return bool(
        config.getoption("benchmark_enable") or not config.getoption("benchmark_disable")
    ) and not config.getoption("collectonly")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("bench_quick"):
        return
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        point = getattr(item, "callspec").params["point"]  # noqa: B009
        (kept if point.quick else dropped).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=dropped)


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    import torch

    from bench.environment import CPUS, facts
    from bench.roof import peaks

    machine_info.clear()
    machine_info.update(facts())
    for threads in sorted({1, CPUS}):
        machine_info[f"arithmetic peak, threads {threads}"] = peaks(threads)
    torch.set_num_threads(CPUS)


class _Protocol:
    """Times points; keeps what neighbouring points share."""

    def __init__(self, config: pytest.Config) -> None:
        from bench.environment import IdleGate

        quick = config.getoption("bench_quick")
        self.seconds = 0.15 if quick else 0.5
        self.gate = IdleGate(patience=10.0 if quick else 60.0)
        self.prepared: Any = None
        self.report = config.getoption("bench_progress")
        self.done = 0
        self.terminal: Any = config.pluginmanager.get_plugin("terminalreporter")
        self.capture: Any = config.pluginmanager.get_plugin("capturemanager")

    def prepare(self, subject: Any, case: Any) -> Any:
        from bench.cases import Prepared

        if self.prepared is None or self.prepared.case is not case:
            self.prepared = None
            self.prepared = Prepared(subject, case)
        return self.prepared

    def limit(self, case: Any, threads: int, kernel: Any = None) -> tuple[float, Any]:
        """Seconds that the machine needs to move what the case moves, and how it did it."""
        from bench.roof import mix_bandwidth

        reads, writes = case.streams
        # What is far beyond every cache need not be larger still, and a few bytes cannot be timed.
        working_set = max(64 << 10, min(case.moved, 1 << 30))
        best = mix_bandwidth(working_set, threads, reads=reads, writes=writes, kernel=kernel)
        return case.moved / best.bytes_per_second, best.kernel

    def say(self, text: str) -> None:
        if self.report:
            with self.capture.global_and_fixture_disabled():
                self.terminal.write_line(text)


@pytest.fixture(scope="session")
def protocol(pytestconfig: pytest.Config) -> _Protocol:
    return _Protocol(pytestconfig)


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


# Seconds from which a call is long: caches and first calls then no longer matter, and few rounds
# are enough.
LONG = 0.25


def _cost(call: Any) -> float:
    """Seconds per call, roughly; the first calls also warm everything up."""
    start = time.perf_counter()
    call()
    first = time.perf_counter() - start
    if first > LONG:
        return first
    times = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return max(statistics.median(times), 1e-7)


@pytest.fixture
def measure(benchmark: Any, protocol: _Protocol) -> Iterator[Any]:
    """Checks a point's result, then times it."""
    import torch

    from bench.cases import NotOfferedError
    from bench.environment import Load, level_of
    from bench.roof import fma_peak, product_peak

    def run(subject: Any, point: Any) -> None:
        case, threads, variant = point.case, point.threads, point.variant
        torch.set_num_threads(threads)
        prepared = protocol.prepare(subject, case)
        with torch.set_grad_enabled(case.direction != "forward"):
            try:
                call = prepared.call(variant)
                result = call()
            except NotOfferedError as answer:
                pytest.skip(str(answer))
            prepared.check(variant, result)
            del result
            if benchmark.disabled:
                benchmark.pedantic(call)
                return
            cost = _cost(call)
            # Rounds of 100 us or more: the clock's own cost and grain then stay below 0.1%.
            iterations = max(1, round(100e-6 / cost))
            rounds = min(
                2000, max(3 if cost > LONG else 7, round(protocol.seconds / (cost * iterations)))
            )
            idle = protocol.gate.wait()
            load = Load.now()
            before, kernel = protocol.limit(case, threads)
            peak = product_peak(case.dtype, threads) if case.products else fma_peak(threads)
            compute = case.flops / peak
            warm = cost <= LONG
            if warm:
                # The limit's buffers took the caches.
                call()
            faults = _faults()
            benchmark.pedantic(call, rounds=rounds, iterations=iterations, warmup_rounds=int(warm))
            faults = _faults() - faults
            after, _ = protocol.limit(case, threads, kernel)
        benchmark.group = f"{subject.op} {case.id} T{threads}"
        benchmark.extra_info.update(
            op=subject.op,
            case=case.id,
            sizes=case.sizes,
            dtype=case.dtype_name,
            direction=case.direction,
            threads=threads,
            variant=variant,
            moved=case.moved,
            flops=case.flops,
            flop_share=None if case.dense_flops is None else case.flops / case.dense_flops,
            level=level_of(case.moved, threads),
            limits=[max(before, compute), max(after, compute)],
            limit_kernel=[kernel.places, kernel.non_temporal],
            faults_per_call=faults / (rounds * iterations),
            others=max(idle, load.others_since()),
            quick=case.quick,
            aim=None if case.aim is None else dataclasses.asdict(case.aim),
        )
        protocol.done += 1
        median = benchmark.stats.stats.median
        protocol.say(
            f"{protocol.done:>4}  {subject.op} {case.id} T{threads} {variant}: "
            f"{median * 1e6:.1f} us, limit {max(before, compute) * 1e6:.1f} us"
        )

    yield run
    torch.set_num_threads(os.cpu_count() or 1)
