"""A sweep on Dask's workers: the same call, another executor. Needs `pip install distributed`.

python examples/sim/sweep_dask.py                          # two worker processes on this machine
python examples/sim/sweep_dask.py tcp://scheduler:8786     # a cluster that is running
"""

from __future__ import annotations

import sys

from distributed import Client

from leeboard.sim import Platform, Program, grid, sweep


def build() -> Program:
    """16 ranks exchange halos with their neighbours, 500 times."""
    program = Program(16)
    with program.loop(500):
        program.compute(seconds="2 ms")
        for rank in range(16):
            for neighbour in ((rank + 1) % 16, (rank - 1) % 16):
                program[rank].irecv(neighbour)
                program[rank].isend(neighbour, bytes="256 KiB")
        program.wait_all()
    return program


def main() -> None:
    """200 platforms; what is done is kept beside, so that the sweep can be interrupted."""
    base = Platform.star(16, bandwidth="1 Gbit/s", latency="50 us", protocol="gloo")
    points = grid(
        base,
        bandwidth=[f"{gigabit} Gbit/s" for gigabit in range(1, 41)],
        latency=["1 us", "5 us", "20 us", "50 us", "200 us"],
    )
    address = {"address": sys.argv[1]} if len(sys.argv) > 1 else {"n_workers": 2}
    with Client(**address, dashboard_address=None) as client:
        table = sweep(build(), points, executor=client.get_executor(), resume="sweep_dask.jsonl")
    print(table)
    print("fastest:", table.best())


if __name__ == "__main__":
    main()
