"""Whether a rank did what the representative of its class did, seen from its own place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from leeboard.sim.distributed.expand import Ops, moves
from leeboard.sim.distributed.mesh import FoldError, Mesh
from leeboard.sim.ops import COLLECTIVES, UNKNOWN, OpKind

# Tags of messages within groups other than that of all ranks begin here (`Run.tag`).
GROUP_TAGS = 1 << 24


def check(
    mesh: Mesh,
    witness: int,
    lists: Mapping[int, Ops],
    groups: Sequence[Sequence[int]],
) -> None:
    """Refuse a witness that did something else.

    Args:
        mesh: The ranks.
        witness: Whose ops to compare.
        lists: Ops of the witness and of its representative, as for `expand`.
        groups: Members of the groups.

    Raises:
        FoldError: Which op is the first that differs, and how.
    """
    home = int(mesh.representatives[witness])
    offset = int(mesh.offsets[witness])
    theirs, own = lists[home].copy(), lists[witness].copy()
    pairs, _ = moves(theirs)
    theirs["peer"][pairs] = mesh.shift(theirs["peer"][pairs], offset)
    known: dict[bytes, int] = {}
    for ops, step in ((theirs, offset), (own, 0)):
        _, collectives = moves(ops)
        ops["tag"][collectives] = _named(mesh, ops["tag"][collectives], groups, step, known)
    length = min(len(own), len(theirs))
    _align_tags(own[:length], theirs[:length])
    # What is measured is never quite the same; only how it is laid out is compared.
    for ops in (own, theirs):
        ops["a"][ops["kind"] == OpKind.DELAY] = 0
    different = np.flatnonzero(own[:length] != theirs[:length])
    if not len(different) and len(own) == len(theirs):
        return
    at = int(different[0]) if len(different) else length
    raise FoldError(_difference(mesh, witness, home, at, lists, groups))


def _named(
    mesh: Mesh,
    numbers: NDArray[np.int32],
    groups: Sequence[Sequence[int]],
    offset: int,
    known: dict[bytes, int],
) -> NDArray[np.int32]:
    """Numbers that groups of the same members have in common."""
    table = np.zeros(len(groups) + 1, np.int32)
    for number in np.unique(numbers).tolist():
        members = range(mesh.ranks) if number == 0 else groups[number - 1]
        key = np.sort(mesh.shift(members, offset)).tobytes()
        table[number] = known.setdefault(key, len(known))
    return table[numbers]


def _align_tags(own: Ops, theirs: Ops) -> None:
    """Give messages within groups the tags of the witness: each group has its own numbers."""
    kind = own["kind"]
    message = ((kind == OpKind.SEND) | (kind == OpKind.RECV)) & (kind == theirs["kind"])
    places = np.flatnonzero(message & (own["tag"] >= GROUP_TAGS) & (theirs["tag"] >= GROUP_TAGS))
    pairs = dict.fromkeys(
        zip(theirs["tag"][places].tolist(), own["tag"][places].tolist(), strict=True)
    )
    # One for one, or they are left to differ.
    if len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs):
        theirs["tag"][places] = own["tag"][places]


def _difference(
    mesh: Mesh,
    witness: int,
    home: int,
    at: int,
    lists: Mapping[int, Ops],
    groups: Sequence[Sequence[int]],
) -> str:
    offset = int(mesh.offsets[witness])
    own = _text(mesh, lists[witness], at, 0, groups)
    theirs = _text(mesh, lists[home], at, 0, groups)
    expected = _text(mesh, lists[home], at, offset, groups)
    here, there = mesh.at(witness), mesh.at(home)
    axes = [a.name for a, x, y in zip(mesh.axes, here, there, strict=True) if x != y]
    marked = " ".join(f"{axis.name}={axis.size}*" for axis in mesh.axes if axis.name in axes)
    return (
        f"fold: {mesh.describe(witness)} does not do what {mesh.describe(home)} does, which was to "
        f"stand for it. Op {at} of rank {witness}: {own}; of rank {home}: {theirs}"
        + (f", which there would be: {expected}" if expected != theirs else "")
        + f". Mark the axis along which they differ as distinct (*): {marked}"
    )


def _text(mesh: Mesh, ops: Ops, at: int, offset: int, groups: Sequence[Sequence[int]]) -> str:
    """An op for people, as the copy at an offset does it."""
    if at >= len(ops):
        return "the end"
    op = ops[at]
    kind = OpKind(int(op["kind"]))
    if kind in (OpKind.SEND, OpKind.RECV):
        peer = int(op["peer"])
        peer = int(mesh.shift([peer], offset)[0]) if peer >= 0 else peer
        whom = f"rank {peer}" if peer >= 0 else "any rank"
        way = "to" if kind is OpKind.SEND else "from"
        size = "any size" if op["a"] == UNKNOWN else f"{int(op['a'])} bytes"
        return f"{kind.name.lower()} {way} {whom}, {size}"
    if kind is OpKind.COLLECTIVE:
        number = int(op["tag"])
        members = np.sort(mesh.shift(groups[number - 1], offset)).tolist() if number else []
        shown = ", ".join(map(str, members[:8])) + (", ..." if len(members) > 8 else "")
        group = f"ranks {shown}" if number else "all ranks"
        return f"{COLLECTIVES[int(op['flags'])]} of {int(op['a'])} bytes among {group}"
    if kind is OpKind.COMPUTE:
        return f"compute of {int(op['a'])} flops and {int(op['b'])} bytes"
    return f"{kind.name.lower()} ({int(op['a'])})"
