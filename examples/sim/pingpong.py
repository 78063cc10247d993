"""Two ranks hand a message back and forth: what a round trip costs by size and protocol.

python examples/sim/pingpong.py
leeboard sim run star.yaml examples/sim/pingpong.py -- 1MiB 100
"""

from __future__ import annotations

from leeboard.sim import Platform, Program, run


def build(args: list[str]) -> Program:
    """Message size and number of round trips, 64 KiB and 1,000 by default."""
    size = args[0] if args else "64 KiB"
    program = Program(2)
    with program.loop(int(args[1]) if len(args) > 1 else 1000):
        program[0].send(1, bytes=size)
        program[0].recv(1)
        program[1].recv(0)
        program[1].send(0, bytes=size)
    return program


def main() -> None:
    """A table: sizes down, protocols across; microseconds a round trip."""
    protocols = ("ideal", "gloo", "mpi")
    print(f"{'':>8}" + "".join(f"{name:>12}" for name in protocols))
    for size in ("64 B", "4 KiB", "64 KiB", "1 MiB"):
        row = []
        for protocol in protocols:
            platform = Platform.star(2, bandwidth="10 Gbit/s", latency="50 us", protocol=protocol)
            result = run(build([size, "100"]), platform)
            row.append(f"{1e6 * result.makespan / 100:12.1f}")
        print(f"{size:>8}" + "".join(row))


if __name__ == "__main__":
    main()
