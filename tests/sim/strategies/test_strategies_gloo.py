"""The same programs, the same answers, on real processes under gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from strategy_runs import figures, simulate

# Two of everything that a strategy asks of a network: collectives, and messages to and fro.
WORDS = {
    "tensor_parallel": "--check --tokens 4 --batch 2",
    "sequence_parallel": "--check --tokens 4 --shares 1,3",
    "pipeline_parallel": "--check --tokens 4 --batch 4",
    "speculative": "--check --tokens 12 --depth 3 --acceptance 0.9,0.7 --overlap",
    "tensor_pipeline": "--check --tokens 4 --pp 2 --rate 200 --requests 4 --spread 0.5",
}

RANK = """
import importlib, sys
import torch
torch.set_num_threads(1)
import torch.distributed as dist
dist.init_process_group("gloo", init_method="file://" + sys.argv[1],
                        rank=int(sys.argv[2]), world_size=2)
for line in sys.argv[3:]:
    name, *words = line.split()
    importlib.import_module("leeboard.sim.strategies." + name).main(words)
    dist.barrier()
dist.destroy_process_group()
"""


def test_real_ranks_answer_as_simulated_ones(tmp_path: Path) -> None:
    lines = [f"{name} {words}" for name, words in WORDS.items()]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(tmp_path / "meeting"), str(rank), *lines],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    try:
        printed = [rank.communicate(timeout=240)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0]
    real = [json.loads(line) for line in printed[0].splitlines()]
    assert len(real) == len(WORDS)
    for found, (name, words) in zip(real, WORDS.items(), strict=True):
        simulated = figures(simulate(name, 2, words))
        assert found["tokens_equal"]
        assert simulated["tokens_equal"]
        for key in ("strategy", "output", "rounds", "acceptance_by_depth", "micro_batches"):
            assert found.get(key) == simulated.get(key)
        assert found["total"] > 0
