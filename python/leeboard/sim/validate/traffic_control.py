"""The rig by the kernel's own means: veth pairs on a bridge, htb for rate, netem for delay.

htb counts a packet as Ethernet has it, without preamble and checksum, as the relay does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Any

from leeboard.sim.validate import namespaces

_BRIDGE = "leeboard-hub"
_SECONDS = 10.0
# Packets that may wait in netem for a link's delay to pass.
_PACKETS = 100_000


def available() -> str | None:
    """None if traffic control can make the rig here; else the reason why not."""
    for tool in ("ip", "tc", "unshare"):
        if shutil.which(tool) is None:
            return f"there is no {tool} (package iproute2, or util-linux)"
    rights = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    probe = (
        "ip link add leeboard-a type veth peer name leeboard-b && "
        "tc qdisc add dev leeboard-a root handle 1: htb default 1 && "
        "tc class add dev leeboard-a parent 1: classid 1:1 htb rate 1mbit && "
        "tc qdisc add dev leeboard-a parent 1:1 netem delay 1ms"
    )
    try:
        subprocess.run(
            ["unshare", *rights, "--net", "sh", "-c", probe],
            check=True,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
    except subprocess.CalledProcessError as error:
        return str(error.stderr).strip().splitlines()[-1] if error.stderr else "tc failed"
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None


def shaping(device: str, bandwidth: float, delay: float, queue: int) -> list[list[str]]:
    """Commands that give a device's way out a rate (bits a second) and a delay (seconds).

    Without a delay there is no netem: a plain queue of `queue` bytes.
    """
    rate = f"{round(bandwidth)}bit"
    leaf = ["netem", "delay", f"{round(delay * 1e6)}us", "limit", str(_PACKETS)]
    if delay <= 0:
        leaf = ["bfifo", "limit", str(queue)]
    return [
        ["tc", "qdisc", "add", "dev", device, "root", "handle", "1:", "htb", "default", "1"],
        ["tc", "class", "add", "dev", device, "parent", "1:", "classid", "1:1", "htb",
         "rate", rate, "burst", "1600", "cburst", "1600"],
        ["tc", "qdisc", "add", "dev", device, "parent", "1:1", "handle", "10:", *leaf],
    ]  # fmt: skip


def build(spec: dict[str, Any]) -> tuple[list[int], dict[str, str]]:
    """A bridge in a namespace of this process, and a namespace a rank around it.

    Returns:
        (a descriptor of each rank's namespace, the TCP settings that were taken).
    """
    bandwidth, queue, half = spec["bandwidth"], spec["queue"], spec["delay"] / 2
    networks, tcp = [], {}
    hub = namespaces.new_network()
    _run(["ip", "link", "add", _BRIDGE, "type", "bridge"])
    _run(["ip", "link", "set", _BRIDGE, "up"])
    for rank in range(spec["ranks"]):
        own = namespaces.new_network()
        networks.append(own)
        namespaces.enter_network(hub)
        port, path = f"port{rank}", f"/proc/{os.getpid()}/fd/{own}"
        _run(["ip", "link", "add", port, "type", "veth", "peer", "name", f"peer{rank}"])
        _run(["ip", "link", "set", f"peer{rank}", "netns", path])
        _run(["ip", "link", "set", port, "master", _BRIDGE])
        _run(["ip", "link", "set", port, "up"])
        for command in shaping(port, bandwidth, half, queue):
            _run(command)
        namespaces.enter_network(own)
        device = spec["device"]
        _run(["ip", "link", "set", f"peer{rank}", "name", device])
        _run(["ip", "address", "add", f"{namespaces.address(rank)}/24", "dev", device])
        _run(["ip", "link", "set", device, "up"])
        for command in shaping(device, bandwidth, half, queue):
            _run(command)
        tcp = namespaces.set_tcp(spec["tcp"])
    return networks, tcp


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.CalledProcessError as error:
        raise namespaces.NoNamespacesError(
            f"{' '.join(command)}: {error.stderr.strip()}"
        ) from error
    except FileNotFoundError as error:
        raise namespaces.NoNamespacesError(f"there is no {command[0]}: install iproute2") from error
