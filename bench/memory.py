"""Peak extra memory of every op: the growth of the resident set above inputs and outputs.

    python -m bench.memory [--quick] [--ops OP ...]

Each figure comes from a process of its own. It runs the op once at a small size (libraries load,
threads start), makes the inputs, resets the kernel's high-water mark of resident memory, runs the
op once and reads the mark. Temporaries count; so does what a forward keeps for its backward.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.run import ALLOCATOR, RESULTS, ROOT

VARIANTS = ("leeboard", "eager", "reference")


def status(key: str) -> int:
    """A field of this process's /proc/self/status that is in kB, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def _once(prepared: Any, variant: Any, training: bool) -> list[Any]:
    """One call; in training its backward too. Returns everything that it made for the caller."""
    import torch

    from bench.cases import differentiable, tensors_of

    inputs = prepared.inputs
    with torch.set_grad_enabled(training):
        outputs = tensors_of(prepared.function(variant)(*inputs.args, **inputs.kwargs))
        if not training:
            return outputs
        loss = differentiable(outputs)
        return outputs + list(torch.autograd.grad(loss, inputs.learned(), prepared.grads_out))


def _measure(op: str, case_id: str, variant: str) -> dict[str, Any]:
    from bench.cases import Prepared, subjects

    subject = subjects()[op]
    case = next(c for c in subject.cases if c.id == case_id)
    training = case.direction != "forward"
    _once(Prepared(subject, subject.warm(case)), variant, training)

    prepared = Prepared(subject, case)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    made = _once(prepared, variant, training)
    peak = status("VmHWM")
    made_bytes = sum({t.data_ptr(): t.nbytes for t in made}.values())
    return {
        "op": op,
        "case": case.id,
        "direction": case.direction,
        "variant": variant,
        "inputs": prepared.inputs.nbytes() + sum(g.nbytes for g in prepared.grads_out),
        "outputs": made_bytes,
        "extra": max(0, peak - before - made_bytes),
    }


def ordinary_environment() -> dict[str, str]:
    """The allocator's ordinary settings: large temporaries are mapped when made, and unmapped."""
    return {name: value for name, value in os.environ.items() if name not in ALLOCATOR}


def _in_fresh_process(job: tuple[str, str, str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "bench.memory", "--one", *job],
        cwd=ROOT,
        env=ordinary_environment(),
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(job)}: exit status {done.returncode}\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(
        f"  {found['op']} {found['case']} {found['variant']}: {found['extra'] / 1e6:.1f} MB",
        flush=True,
    )
    return found


def _jobs(quick: bool, ops: Sequence[str] | None) -> list[tuple[str, str, str]]:
    """The cases that say so of every op, or else the largest of each direction and dtype."""
    from bench.cases import Case, subjects

    jobs = []
    for op, subject in subjects().items():
        if ops is not None and op not in ops:
            continue
        chosen = [case for case in subject.cases if case.memory]
        if not chosen:
            largest: dict[tuple[str, str], Case] = {}
            for case in subject.cases:
                key = (case.direction, case.dtype_name)
                if key not in largest or largest[key].moved < case.moved:
                    largest[key] = case
            chosen = list(largest.values())
        jobs += [(op, c.id, v) for c in chosen if c.quick or not quick for v in VARIANTS]
    return jobs


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.memory")
    parser.add_argument("--quick", action="store_true", help="fewer cases")
    parser.add_argument("--ops", nargs="+", metavar="OP", help="only these")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(_measure(*options.one)))
        return
    # Memory does not depend on who else runs: as many at a time as there are cores.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(_in_fresh_process, _jobs(options.quick, options.ops)))
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "memory.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
