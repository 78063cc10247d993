"""The machine's limits, measured: memory bandwidth of a read/write mix, arithmetic by data type.

    python -m bench.roof         prints both; the bandwidth for a range of working sets

Buffers come from torch, as the ops' tensors do: same allocator, same page size.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import statistics
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.environment import CPUS, cpu_flags, level_of

SOURCE = Path(__file__).with_name("roof.cpp")
BUILD = Path(__file__).with_name("build")
# Arrays that start at the same offset of a page would look alike to the store buffer.
STAGGER = 64 * 37


@dataclass(frozen=True)
class Kernel:
    """How the mix is walked: runs followed at a time, and whether stores pass the caches by."""

    places: int
    non_temporal: bool


@dataclass(frozen=True)
class Bandwidth:
    """Bytes read plus written per second, by the fastest kernel."""

    bytes_per_second: float
    kernel: Kernel


def _flags() -> list[str]:
    features = cpu_flags()
    if "avx512f" in features:
        dot = ["-mavx512bf16"] if "avx512_bf16" in features else []
        return ["-march=x86-64-v4", "-mprefer-vector-width=512", *dot]
    if "avx2" in features:
        return ["-march=x86-64-v3"]
    return []


@functools.cache
def _library() -> ctypes.CDLL:
    command = ["g++", "-std=c++20", "-O3", "-shared", "-fPIC", "-pthread", "-Wno-psabi", *_flags()]
    key = hashlib.sha256(SOURCE.read_bytes() + " ".join(command).encode()).hexdigest()[:16]
    path = BUILD / f"roof-{key}.so"
    if not path.exists():
        BUILD.mkdir(exist_ok=True)
        part = path.with_suffix(".part")
        subprocess.run([*command, str(SOURCE), "-o", str(part)], check=True)
        part.replace(path)
    library = ctypes.CDLL(str(path))
    library.roof_mix.restype = ctypes.c_int64
    library.roof_mix.argtypes = [
        ctypes.c_void_p,
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_int,
        ctypes.c_int64,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int64,
        ctypes.c_int,
        ctypes.c_void_p,
    ]
    for peak in (library.roof_fma, library.roof_dot):
        peak.restype = ctypes.c_int64
        peak.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int, ctypes.c_void_p]
    return library


@functools.lru_cache(maxsize=1)
def _arrays(count: int, size: int) -> tuple[torch.Tensor, list[int]]:
    """Memory for `count` arrays of `size` bytes, and where each starts."""
    step = -(-size // 4096) * 4096 + STAGGER
    # Written, not merely zeroed: untouched pages all read from one page of zeros, out of cache.
    memory = torch.ones(count * step + 64, dtype=torch.uint8)
    first = -(-memory.data_ptr() // 64) * 64
    return memory, [first + i * step for i in range(count)]


def _run_mix(
    kernel: Kernel, reads: int, writes: int, size: int, threads: int, sweeps: int, rounds: int
) -> float:
    """Bytes per second, median of rounds; 0 where the arrays are too short for the kernel."""
    _, addresses = _arrays(reads + writes, size)
    pointers = (ctypes.c_void_p * (reads + writes))(*addresses)
    seconds = (ctypes.c_double * rounds)()
    moved = _library().roof_mix(
        pointers,
        reads,
        ctypes.byref(pointers, reads * ctypes.sizeof(ctypes.c_void_p)),
        writes,
        size,
        kernel.places,
        kernel.non_temporal,
        threads,
        sweeps,
        rounds,
        seconds,
    )
    return moved / statistics.median(seconds) if moved else 0.0


def _candidates(writes: int) -> Iterator[Kernel]:
    for places in (1, 4, 8):
        yield Kernel(places, False)
        if writes:
            yield Kernel(places, True)


def mix_bandwidth(
    working_set: int,
    threads: int,
    *,
    reads: int,
    writes: int,
    seconds: float = 0.06,
    kernel: Kernel | None = None,
) -> Bandwidth:
    """The fastest way to stream through `reads` + `writes` arrays that fill `working_set` bytes.

    Args:
        working_set: Bytes of all arrays together.
        threads: Each sweeps its own slice of every array.
        reads: Arrays read, 1 to 4.
        writes: Arrays written, 0 to 2.
        seconds: Time to spend, about.
        kernel: Measure this one alone, instead of the fastest.

    Returns:
        Bytes read plus written per second. What a cache fetches in order to overwrite it does not
        count.
    """
    if not (1 <= reads <= 4 and 0 <= writes <= 2):
        raise ValueError(f"reads, writes: got {reads}, {writes}; expected 1 to 4 and 0 to 2")
    size = working_set // (reads + writes)

    def rate(chosen: Kernel, sweeps: int, rounds: int) -> float:
        return _run_mix(chosen, reads, writes, size, threads, sweeps, rounds)

    probe = rate(kernel or Kernel(1, False), 1, 1)
    if probe == 0.0:
        raise ValueError(f"working_set: {working_set} bytes are too few for {threads} threads")
    # At least 200 us a round, so that starting together costs nothing.
    sweeps = max(1, round(200e-6 * probe / working_set))
    rounds = max(7, round(seconds * probe / (working_set * sweeps)))
    if kernel is None:
        kernel = max(_candidates(writes), key=lambda k: rate(k, sweeps, max(5, rounds // 5)))
    # Measured again: the winner of a noisy race looks faster than it is.
    return Bandwidth(rate(kernel, sweeps, rounds), kernel)


def copy_bandwidth(working_set: int, threads: int) -> float:
    """Bytes per second, read plus written, of the fastest copy; source and target together."""
    return mix_bandwidth(working_set, threads, reads=1, writes=1).bytes_per_second


def read_bandwidth(working_set: int, threads: int) -> float:
    """Bytes per second of the fastest read."""
    return mix_bandwidth(working_set, threads, reads=1, writes=0).bytes_per_second


def _peak(loop: Callable[..., int], threads: int) -> float:
    # The fastest round: a limit must not be lower because somebody else had a core.
    rounds = 100
    seconds = (ctypes.c_double * rounds)()
    done = loop(threads, 200_000, rounds, seconds)
    return float(done / min(seconds)) if done else 0.0


@functools.cache
def fma_peak(threads: int) -> float:
    """Float32 operations per second; a multiply-add is two."""
    return _peak(_library().roof_fma, threads)


@functools.cache
def dot_peak(threads: int) -> float:
    """The same with bfloat16 factors and float32 sums; 0 where no instruction does that."""
    return _peak(_library().roof_dot, threads)


def product_peak(dtype: torch.dtype, threads: int) -> float:
    """Operations per second of products of `dtype` summed in float32, by the fastest instruction."""
    peak = fma_peak(threads)
    return max(peak, dot_peak(threads)) if dtype == torch.bfloat16 else peak


def peaks(threads: int) -> str:
    """Both peaks in words."""
    dot = dot_peak(threads)
    pairs = f"{dot / 1e9:.0f} (bfloat16 pairs)" if dot else "no bfloat16 pairs"
    return f"{fma_peak(threads) / 1e9:.0f} GFLOP/s (float32), {pairs}"


def main() -> None:
    print(f"{'working set':>12} {'level':>5} {'threads':>7} {'read':>8} {'copy':>8}  GB/s")
    for exponent in range(15, 30, 2):
        for threads in sorted({1, CPUS}):
            size = 1 << exponent
            print(
                f"{size >> 10:>9} kB {level_of(size, threads):>5} {threads:>7} "
                f"{read_bandwidth(size, threads) / 1e9:>8.1f} "
                f"{copy_bandwidth(size, threads) / 1e9:>8.1f}"
            )
    for threads in sorted({1, CPUS}):
        print(f"multiply-adds, {threads} threads: {peaks(threads)}")


if __name__ == "__main__":
    main()
