"""The process that owns the namespaces and the relay, and starts ranks: `python -m ...agent`.

It reads one JSON object from its standard input, answers with JSON lines on its standard output, and
ends when it is done or when the input is closed. All that it made ends with it: namespaces and devices
live as long as the descriptors that hold them, and ranks die with their parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leeboard.sim.validate import namespaces, traffic_control

DEVICE = "leeboard0"
_DIE_WITH_PARENT = 1
_MOST_OUTPUT = 1 << 24
# Of ranks, where this user may give it.
_PRIORITY = -10


def _tell(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def _entering(network: int, core: int | None) -> Callable[[], None]:
    """What a rank's process does before its program: die with its parent, and its network."""

    def enter() -> None:
        os.setsid()
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        namespaces.enter_network(network)
        # Other work on the host is not what is measured.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, _PRIORITY)
            # A session is a group of the scheduler's, within which alone that counts.
            Path("/proc/self/autogroup").write_text(str(_PRIORITY))
        if core is not None:
            os.sched_setaffinity(0, {core})

    return enter


def environment(spec: dict[str, Any], rank: int) -> dict[str, str]:
    """A rank's environment, as torchrun gives it."""
    ranks = str(spec["ranks"])
    return {
        **os.environ,
        **spec["environment"],
        "RANK": str(rank),
        "LOCAL_RANK": "0",
        "WORLD_SIZE": ranks,
        "LOCAL_WORLD_SIZE": "1",
        "GROUP_RANK": str(rank),
        "MASTER_ADDR": namespaces.address(0),
        "MASTER_PORT": str(spec["port"]),
        "GLOO_SOCKET_IFNAME": spec["device"],
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TORCH_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }


def start_rank(spec: dict[str, Any], networks: list[int], rank: int) -> subprocess.Popen[bytes]:
    """A rank's process, in its network, on its core."""
    return subprocess.Popen(
        spec["command"],
        env=environment(spec, rank),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # No other thread of this process runs Python, and the relay's holds none of its locks.
        preexec_fn=_entering(networks[rank], spec["cores"][rank]),  # noqa: PLW1509
    )


def gather(
    processes: list[subprocess.Popen[bytes]], until: float, alive: Callable[[], bool]
) -> tuple[str, list[int | None], list[str], list[str]]:
    """Read what ranks write until all have ended, one has failed, or it is too late.

    Returns:
        ("done" | "failed" | "late" | "left", exit statuses, what each wrote, its errors).
    """
    texts = [[bytearray(), bytearray()] for _ in processes]
    with selectors.DefaultSelector() as selector:
        for rank, process in enumerate(processes):
            for which, pipe in enumerate((process.stdout, process.stderr)):
                if pipe is not None:
                    os.set_blocking(pipe.fileno(), False)
                    selector.register(pipe, selectors.EVENT_READ, texts[rank][which])
        why = "done"
        failed_at = 0.0
        while selector.get_map():
            for key, _ in selector.select(0.2):
                data = os.read(key.fd, 1 << 16)
                if data:
                    key.data.extend(data[: max(_MOST_OUTPUT - len(key.data), 0)])
                else:
                    selector.unregister(key.fileobj)
            statuses = [process.poll() for process in processes]
            if why == "done" and any(statuses):
                why, failed_at = "failed", time.monotonic()
            # The others may say why, too, before they are stopped.
            if why == "failed" and time.monotonic() - failed_at > 3.0:
                break
            if time.monotonic() > until:
                why = "late"
                break
            if not alive():
                why = "left"
                break
    stop(processes)
    statuses = [process.returncode for process in processes]
    if why == "done" and any(statuses):
        why = "failed"
    out = [[bytes(text).decode(errors="replace") for text in pair] for pair in texts]
    return why, statuses, [a for a, _ in out], [b for _, b in out]


def stop(processes: list[subprocess.Popen[bytes]]) -> None:
    """Kill what still runs, with all that it started, and collect it."""
    for process in processes:
        if process.poll() is None:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                process.kill()
    for process in processes:
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def _parent_lives() -> bool:
    """Whether the standard input is still open: its other end is the caller's."""
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        return not (selector.select(0) and not os.read(0, 1))


def relayed(spec: dict[str, Any], rights: str) -> None:
    """Namespaces, a relay between them, and a run of the ranks."""
    from leeboard import _C

    networks, tuns, tcp = [], [], {}
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    for rank in range(spec["ranks"]):
        networks.append(namespaces.new_network())
        tuns.append(namespaces.open_tun(spec["device"], namespaces.address(rank)))
        tcp = namespaces.set_tcp(spec["tcp"])
    namespaces.enter_network(own)
    ports = [tuple(port) for port in spec["ports"]]
    relay = _C.Relay(tuns, ports, spec["framing"], namespaces.network_number())
    try:
        _tell(event="ready", rights=rights, real_time=relay.real_time(), tcp=tcp)
        conduct(spec, networks, relay.report)
    finally:
        relay.stop()


def controlled(spec: dict[str, Any], rights: str) -> None:
    """The same with the kernel's traffic control."""
    networks, tcp = traffic_control.build(spec)
    _tell(event="ready", rights=rights, tcp=tcp)
    conduct(spec, networks, dict)


def conduct(
    spec: dict[str, Any], networks: list[int], report: Callable[[], dict[str, Any]]
) -> None:
    """Run the ranks, if there is a command, and tell how it went."""
    if not spec["command"]:
        return
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(spec["ranks"]):
            # One by one: those before one that cannot be started are to be stopped.
            processes.append(start_rank(spec, networks, rank))  # noqa: PERF401
        until = time.monotonic() + spec["seconds"]
        why, statuses, out, err = gather(processes, until, _parent_lives)
    finally:
        stop(processes)
    _tell(event="done", why=why, statuses=statuses, out=out, err=err, relay=report())


def main() -> int:
    """Read the order, carry it out."""
    # Stopped by the caller, who closes the input; an interrupt of the terminal is the caller's.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    spec = json.loads(sys.stdin.buffer.readline())
    try:
        rights = namespaces.become_free()
        (controlled if spec["means"] == "traffic-control" else relayed)(spec, rights)
    except (namespaces.NoNamespacesError, OSError) as error:
        _tell(event="refused", message=str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
