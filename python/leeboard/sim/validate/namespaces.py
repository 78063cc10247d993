"""Network namespaces and TUN devices of this process, with no tool but the kernel's own calls."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
import sys
from pathlib import Path

NETWORK = "10.231.0.0"
PREFIX = "10.231.0."
MTU = 1500

_NEW_USER = 0x10000000
_NEW_NET = 0x40000000
_TUN_SET = 0x400454CA
_TUN, _NO_PACKET_INFO = 0x0001, 0x1000
_SET_FLAGS, _GET_FLAGS = 0x8914, 0x8913
_SET_ADDRESS, _SET_MASK, _SET_MTU, _SET_QUEUE = 0x8916, 0x891C, 0x8922, 0x8943
_UP = 0x1


class NoNamespacesError(RuntimeError):
    """This process may not make network namespaces or TUN devices; it says what would help."""


def network_number() -> int:
    """The network's address as a number, for the relay."""
    return int(struct.unpack("!I", socket.inet_aton(NETWORK))[0])


def address(rank: int) -> str:
    """A rank's address on the star."""
    return f"{PREFIX}{rank + 1}"


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: int) -> None:
    if getattr(_libc(), name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def become_free() -> str:
    """Get the right to make namespaces: "root", or "user" where a user namespace had to be made.

    Only for a process of its own with one thread: the user namespace stays for its life.

    Raises:
        NoNamespacesError: Neither root nor allowed to make a user namespace.
    """
    if not sys.platform.startswith("linux"):
        raise NoNamespacesError(f"network namespaces need Linux, and this is {sys.platform}")
    if os.geteuid() == 0 and _may_make_networks():
        return "root"
    user, group = os.geteuid(), os.getegid()
    try:
        _call("unshare", _NEW_USER)
    except OSError as error:
        raise NoNamespacesError(
            f"no user namespace may be made here ({error.strerror}): run as root, or allow them "
            "(sysctl user.max_user_namespaces; on Debian kernel.unprivileged_userns_clone=1; on "
            "Ubuntu kernel.apparmor_restrict_unprivileged_userns=0; in a container "
            "--cap-add SYS_ADMIN, or a seccomp profile that allows unshare)"
        ) from error
    with contextlib.suppress(OSError):
        Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    return "user"


def _may_make_networks() -> bool:
    """Whether unshare(CLONE_NEWNET) works; tried in a child, which it does not outlive."""
    child = os.fork()
    if child == 0:
        try:
            _call("unshare", _NEW_NET)
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def new_network() -> int:
    """Enter a new network namespace, with its loopback up; a descriptor that holds it."""
    _call("unshare", _NEW_NET)
    bring_up("lo")
    return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def enter_network(descriptor: int) -> None:
    """Make this thread's network that of a descriptor of `new_network`."""
    _call("setns", descriptor, _NEW_NET)


def open_tun(name: str, host: str) -> int:
    """Make a TUN device in this namespace, up, with the address `host`; its descriptor.

    Raises:
        NoNamespacesError: There is no /dev/net/tun, or it may not be opened.
    """
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        hint = (
            "load the module tun"
            if error.errno in (errno.ENOENT, errno.ENODEV)
            else (
                "make /dev/net/tun readable and writable for this user, or run as root (in a "
                "container: --device /dev/net/tun --cap-add NET_ADMIN)"
            )
        )
        raise NoNamespacesError(f"/dev/net/tun: {error.strerror}: {hint}") from error
    try:
        fcntl.ioctl(
            descriptor, _TUN_SET, struct.pack("16sH22x", name.encode(), _TUN | _NO_PACKET_INFO)
        )
        _configure(name, host)
    except OSError as error:
        os.close(descriptor)
        raise NoNamespacesError(f"TUN device {name}: {error.strerror}; run as root") from error
    return descriptor


def _configure(name: str, host: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for request, text in ((_SET_ADDRESS, host), (_SET_MASK, "255.255.255.0")):
            packed = struct.pack(
                "16sHH4s8x", name.encode(), socket.AF_INET, 0, socket.inet_aton(text)
            )
            fcntl.ioctl(control, request, packed)
        fcntl.ioctl(control, _SET_MTU, struct.pack("16si20x", name.encode(), MTU))
        # A burst of a whole window must find room until the relay has read it.
        fcntl.ioctl(control, _SET_QUEUE, struct.pack("16si20x", name.encode(), 20000))
    bring_up(name)
    with contextlib.suppress(OSError):
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")


def bring_up(name: str) -> None:
    """Set a device of this namespace up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        packed = struct.pack("16sH22x", name.encode(), 0)
        flags = struct.unpack("16sH22x", fcntl.ioctl(control, _GET_FLAGS, packed))[1]
        fcntl.ioctl(control, _SET_FLAGS, struct.pack("16sH22x", name.encode(), flags | _UP))


def set_tcp(settings: dict[str, str]) -> dict[str, str]:
    """Set this namespace's net.ipv4 settings; those that were taken, and those that were not."""
    found = {}
    for key, value in settings.items():
        path = Path("/proc/sys/net/ipv4") / key
        try:
            path.write_text(value)
            found[key] = path.read_text().strip()
        except OSError as error:
            found[key] = f"not set: {error.strerror}"
    return found
