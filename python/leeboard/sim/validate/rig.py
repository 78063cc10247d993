"""A rig: ranks in network namespaces of their own, around a switch by links of known figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from leeboard.sim import units
from leeboard.sim.validate.agent import DEVICE
from leeboard.sim.validate.namespaces import NoNamespacesError

FRAMING = 14
_PORT = 29511
Means = Literal["relay", "traffic-control"]


class RigError(RuntimeError):
    """Ranks failed, took too long, or the rig could not be made."""


@dataclass(frozen=True)
class Links:
    """The links of a star, all alike.

    Attributes:
        bandwidth: Bits a second of each host's link, each way. A packet takes (its bytes as IP has
            them + 14 of Ethernet's header) * 8 / bandwidth; no preamble, no gap.
        delay: Seconds from host to host, one way; half of it on each of the two links.
        queue: Bytes that may wait on a link before packets are dropped.
        window: Bytes that a TCP connection may have under way, about. Wide enough that the
            acknowledgements' delay does not slow it down.
    """

    bandwidth: float
    delay: float
    queue: int = 64 << 20
    window: int = 4 << 20

    def __post_init__(self) -> None:
        if not self.bandwidth > 0:
            raise ValueError(f"bandwidth: got {self.bandwidth!r}, expected bits a second above 0")
        if not 0 <= self.delay < 10:
            raise ValueError(f"delay: got {self.delay!r}, expected seconds, 0 to 10")

    @classmethod
    def of(cls, bandwidth: units.Value, delay: units.Value) -> Links:
        """From quantities such as "100 Mbit/s" and "1 ms"."""
        rate = 8 * float(units.parse("bandwidth", bandwidth, units.BANDWIDTH))
        return cls(rate, float(units.parse("delay", delay, units.TIME)))

    def ports(self, ranks: int) -> list[tuple[float, float, int, int, int]]:
        """As the relay takes them."""
        half = round(self.delay * 1e9 / 2)
        whole = round(self.delay * 1e9)
        return [(self.bandwidth, self.bandwidth, half, whole - half, self.queue)] * ranks

    def tcp(self) -> dict[str, str]:
        """What is set in each namespace (net.ipv4)."""
        # Of the receive buffer the kernel counts the packets' whole memory, about twice the bytes.
        memory = 2 * self.window
        return {
            "tcp_congestion_control": "reno",
            "tcp_slow_start_after_idle": "0",
            "tcp_rmem": f"4096 {memory} {memory}",
            "tcp_wmem": f"4096 {2 * memory} {4 * memory}",
            "tcp_no_metrics_save": "1",
        }


@dataclass(frozen=True)
class Outcome:
    """What ranks wrote, and what the relay counted.

    Attributes:
        out: Standard output, a text a rank.
        err: Standard error, the same.
        relay: Counters of the relay; empty under traffic control.
        rig: How the rig was made: means, rights, priority, TCP settings.
    """

    out: list[str]
    err: list[str]
    relay: dict[str, Any] = field(default_factory=dict)
    rig: dict[str, Any] = field(default_factory=dict)

    def lines(self, rank: int = 0) -> list[dict[str, Any]]:
        """The JSON objects among the lines of a rank's output."""
        found = []
        for line in self.out[rank].splitlines():
            if line.startswith("{"):
                try:
                    value = json.loads(line)
                except ValueError:
                    continue
                if isinstance(value, dict):
                    found.append(value)
        return found


@dataclass(frozen=True)
class Rig:
    """Ranks around a switch.

    Attributes:
        ranks: 1 to 200.
        links: The links' figures.
        means: "relay", "traffic-control", or None: traffic control where this kernel has it and
            this user may, else the relay.
    """

    ranks: int
    links: Links
    means: Means | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.ranks <= 200:
            raise ValueError(f"ranks: got {self.ranks}, expected 1 to 200")

    def check(self) -> dict[str, Any]:
        """Make the rig and take it down again; how it was made.

        Raises:
            NoNamespacesError: It may not be made here; the message says what would help.
        """
        return self._run([], {}, 30.0, [None] * self.ranks).rig

    def run(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        seconds: float = 300.0,
        cores: Sequence[int | None] | None = None,
    ) -> Outcome:
        """Run a command on every rank, with torchrun's environment, until all have ended.

        Args:
            command: Program and arguments.
            environment: Variables beside torchrun's.
            seconds: After which the ranks are killed.
            cores: Which core each rank is held to; None: rank r to the r-th of this process' cores,
                modulo their number.

        Raises:
            RigError: A rank failed, or it took too long; all that was started is gone.
            NoNamespacesError: The rig may not be made here.
        """
        if cores is None:
            own = sorted(os.sched_getaffinity(0))
            cores = [own[rank % len(own)] for rank in range(self.ranks)]
        return self._run(command, environment or {}, seconds, cores)

    def _run(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        seconds: float,
        cores: Sequence[int | None],
    ) -> Outcome:
        from leeboard.sim.validate.traffic_control import available

        means = self.means or ("traffic-control" if available() is None else "relay")
        spec = {
            "means": means,
            "ranks": self.ranks,
            "ports": self.links.ports(self.ranks),
            "bandwidth": self.links.bandwidth,
            "delay": self.links.delay,
            "queue": self.links.queue,
            "framing": FRAMING,
            "tcp": self.links.tcp(),
            "command": list(command),
            "environment": dict(environment),
            "seconds": seconds,
            "cores": list(cores),
            "device": DEVICE,
            "port": _PORT,
        }
        agent = subprocess.Popen(
            [sys.executable, "-m", "leeboard.sim.validate"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert agent.stdin is not None
        try:
            agent.stdin.write(json.dumps(spec).encode() + b"\n")
            agent.stdin.flush()
            # The input stays open: its end tells the agent that nobody waits for it any more.
            out, err = _read_both(agent)
        finally:
            agent.stdin.close()
            try:
                agent.wait(10)
            except subprocess.TimeoutExpired:
                agent.kill()
                agent.wait()
            for pipe in (agent.stdout, agent.stderr):
                if pipe is not None:
                    pipe.close()
        return _outcome(means, out, err, agent.returncode)


def _read_both(agent: subprocess.Popen[bytes]) -> tuple[str, str]:
    import threading

    assert agent.stdout is not None
    assert agent.stderr is not None
    errors: list[bytes] = []
    reader = threading.Thread(target=lambda: errors.append(agent.stderr.read()), daemon=True)  # type: ignore[union-attr]
    reader.start()
    out = agent.stdout.read()
    reader.join()
    return out.decode(errors="replace"), b"".join(errors).decode(errors="replace")


def _outcome(means: str, out: str, err: str, status: int) -> Outcome:
    rig: dict[str, Any] = {"means": means}
    done: dict[str, Any] | None = None
    for line in out.splitlines():
        event = json.loads(line)
        kind = event.pop("event")
        if kind == "refused":
            raise NoNamespacesError(event["message"])
        if kind == "ready":
            rig.update(event)
        else:
            done = event
    if done is None:
        if "rights" in rig and status == 0:
            return Outcome([], [], {}, rig)
        raise RigError(f"the rig ended early: {err.strip()[-2000:]}")
    if done["why"] != "done":
        what = {
            "failed": "a rank failed",
            "late": "the ranks took too long and were stopped",
            "left": "interrupted",
        }[done["why"]]
        said = "\n".join(
            f"rank {rank} (status {status}): {text.strip()[-1500:]}"
            for rank, (status, text) in enumerate(zip(done["statuses"], done["err"], strict=True))
            if status
        )
        raise RigError(f"{what}\n{said}")
    return Outcome(done["out"], done["err"], done["relay"], rig)
