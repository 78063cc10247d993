"""A model cut over four edge devices serves requests: latency against load.

python examples/sim/pipeline_serving.py
leeboard sim run edge.yaml examples/sim/pipeline_serving.py --critical-path -- 150
"""

from __future__ import annotations

from leeboard.sim import Device, Exponential, Platform, Poisson, Program, run

STAGES = 4


def build(args: list[str]) -> Program:
    """Requests a second, 100 by default."""
    program = Program(STAGES)
    queue = program.arrivals(Poisson(rate=float(args[0]) if args else 100.0, count=2000))
    first, last = program[0], program[STAGES - 1]
    with first.serve(queue):
        first.compute(seconds=Exponential("4 ms"))
        first.send(1, bytes="128 KiB")
    for number in range(1, STAGES - 1):
        stage = program[number]
        with stage.loop(2000):
            stage.recv(number - 1)
            stage.compute(seconds=Exponential("4 ms"))
            stage.send(number + 1, bytes="128 KiB")
    with last.loop(2000):
        last.recv(STAGES - 2)
        last.compute(seconds=Exponential("4 ms"))
        last.done(queue)
    return program


def main() -> None:
    """A row for each load, up to where the queue would grow for ever."""
    device = Device("box", idle_power="5 W", active_power="15 W")
    platform = Platform.star(STAGES, bandwidth="1 Gbit/s", latency="200 us", device=device)
    print(f"{'load':>8} {'p50':>9} {'p99':>9} {'energy a request':>18}")
    for rate in (25, 50, 100, 150, 200):
        result = run(build([str(rate)]), platform)
        row = result.requests.row(0)
        energy = result.energy / row["count"]
        print(f"{rate:>6}/s {1e3 * row['p50']:6.1f} ms {1e3 * row['p99']:6.1f} ms {energy:16.3f} J")


if __name__ == "__main__":
    main()
