"""Data-parallel training: when do gradients hide behind the backward pass, and when not?

python examples/sim/ring_allreduce.py
leeboard sim run --platform star.yaml examples/sim/ring_allreduce.py --plot run.png -- 8 24
"""

from __future__ import annotations

from leeboard.sim import Platform, Program, sweep
from leeboard.sim.sweep import grid


def build(args: list[str]) -> Program:
    """Ranks and layers, 8 and 24 by default: one training step, gradients reduced layer by layer."""
    ranks, layers = (int(word) for word in args) if args else (8, 24)
    program = Program(ranks)
    program.mark("forward")
    with program.loop(layers):
        program.compute(seconds="1 ms")
    program.mark("backward")
    with program.loop(layers):
        program.compute(seconds="2 ms")
        # On a stream of its own, beside the next layer's backward pass.
        program.all_reduce(bytes="8 MiB", algorithm="ring", stream=1)
    program.synchronize(1)
    program.mark("step")
    program.compute(seconds="500 us")
    return program


def main() -> None:
    """Sweep bandwidth and latency of an 8-rank star."""
    base = Platform.star(8, bandwidth="10 Gbit/s", latency="20 us")
    axes = {
        "bandwidth": ["1 Gbit/s", "10 Gbit/s", "40 Gbit/s", "100 Gbit/s"],
        "latency": ["5 us", "50 us"],
    }
    print(sweep(build([]), grid(base, **axes)))


if __name__ == "__main__":
    main()
