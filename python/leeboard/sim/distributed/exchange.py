"""Tensors between ranks. Bytes move in the engine, in virtual time; values move here.

A rank gives its tensors by reference when it calls, and the others take theirs once the engine says
that it is over for them. Whoever goes on before the others have taken gets its part copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from leeboard.sim.distributed import where
from leeboard.sim.distributed.moves import fill
from leeboard.sim.distributed.reduce import NAMES
from leeboard.sim.errors import CollectiveMismatchError, SimulationError

# name, reduction or -1, root or -1, then dtype and number of elements of each tensor.
Signature = tuple[Any, ...]
_SHOWN = 4


def shown(tensor: Tensor) -> str:
    """ "float32 [2, 3]"."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


class Meeting:
    """One collective of a group, from the first that comes to the last that goes.

    Attributes:
        signature: What all must agree on.
        reduction: Which (`reduce`), or -1.
        root: The root's place in the group, or -1.
        inputs: What each member gave; None before it has come.
        result: Whatever the first to go worked out for the others.
    """

    __slots__ = (
        "exchange",
        "group",
        "inputs",
        "key",
        "left",
        "reduction",
        "result",
        "root",
        "signature",
        "size",
    )

    def __init__(
        self, exchange: Exchange, key: tuple[int, int], size: int, signature: Signature
    ) -> None:
        self.exchange = exchange
        self.key = key
        self.size = size
        self.signature = signature
        self.reduction: int = signature[1]
        self.root: int = signature[2]
        self.inputs: list[Any] = [None] * size
        self.left = 0
        self.result: Any = None

    def keep(self, me: int) -> None:
        """Member `me` goes on, and its tensors may change: others see them as they are now."""
        if self.left + 1 < self.size:
            self.inputs[me] = [tensor.clone() for tensor in self.inputs[me]]

    def disagreement(self, source: int, me: int, given: Tensor, wanted: Tensor) -> Exception:
        """Member `source` gives another tensor than `me` wants."""
        members = self.exchange.members[self.key[0]]
        return CollectiveMismatchError(
            f"{self.signature[0]}: rank {members[source]} gives rank {members[me]} "
            f"{shown(given)}, which expects {shown(wanted)}{_at(where.here())}"
        )


Move = Callable[[Meeting, int, Sequence[Tensor]], None]


class Exchange:
    """Moves the tensors of all ranks of a run.

    Attributes:
        values: Whether tensors have values to move.
        members: Ranks of each group, by the engine's number of the group.
        threads: Of ranks, to say at which line of the program they are.
    """

    values = True

    def __init__(self) -> None:
        self.members: dict[int, Sequence[int]] = {}
        self.threads: dict[int, int] = {}
        self._meetings: dict[tuple[int, int], Meeting] = {}
        self._sent: dict[tuple[int, int], Tensor] = {}

    def open(self, group: int, members: Sequence[int], rank: int, thread: int) -> None:
        """A group by the engine's number, as one of its ranks makes it on its thread."""
        self.members.setdefault(group, members)
        self.threads[rank] = thread

    def post(self, key: tuple[int, int], tensor: Tensor) -> None:
        """A message: `key` is the sender and the number of the send."""
        self._sent[key] = tensor

    def keep(self, key: tuple[int, int]) -> None:
        """The sender goes on, and the tensor may change; it may have been taken."""
        tensor = self._sent.get(key)
        if tensor is not None:
            self._sent[key] = tensor.clone()

    def take(self, key: tuple[int, int], me: int, tag: int, out: Tensor) -> None:
        """Receive a message, which is over.

        Raises:
            SimulationError: The message has another dtype or another number of elements.
        """
        tensor = self._sent.pop(key)
        if tensor.dtype != out.dtype or tensor.numel() != out.numel():
            raise SimulationError(
                f"rank {key[0]} sends {shown(tensor)} to rank {me} (tag {tag}), which receives into "
                f"{shown(out)}{_at(where.here())}: both must have the same dtype and as many "
                "elements"
            )
        self._fill(tensor, out)

    def _fill(self, tensor: Tensor, out: Tensor) -> None:
        if torch._C._len_torch_dispatch_stack():
            with torch._C._DisableTorchDispatch():
                fill(out, tensor)
        else:
            fill(out, tensor)

    def join(
        self, group: int, number: int, me: int, size: int, signature: Signature, inputs: Any
    ) -> Meeting:
        """Member `me` comes to the group's collective `number` with its tensors.

        Raises:
            CollectiveMismatchError: Others have come with another collective, or other tensors.
        """
        key = (group, number)
        meeting = self._meetings.get(key)
        if meeting is None:
            meeting = self._meetings[key] = Meeting(self, key, size, signature)
        elif meeting.signature != signature:
            raise self._mismatch(meeting, me, signature, inputs)
        meeting.inputs[me] = inputs
        return meeting

    def collect(self, meeting: Meeting, me: int, move: Move, outs: Sequence[Tensor]) -> None:
        """Member `me` goes, with what is its in `outs`."""
        if torch._C._len_torch_dispatch_stack():
            with torch._C._DisableTorchDispatch():
                move(meeting, me, outs)
        else:
            move(meeting, me, outs)
        left = meeting.left + 1
        meeting.left = left
        if left == meeting.size:
            del self._meetings[meeting.key]

    def _mismatch(
        self, meeting: Meeting, me: int, signature: Signature, inputs: Any
    ) -> CollectiveMismatchError:
        group, number = meeting.key
        members = self.members[group]
        other = next(place for place, given in enumerate(meeting.inputs) if given is not None)
        first = _call(meeting.signature, meeting.inputs[other])
        line = where.of_thread(self.threads.get(members[other], 0))
        return CollectiveMismatchError(
            f"collective {number} of group {group} (ranks {_some(members)}): rank "
            f"{members[other]} calls {first}{_at(line)}, rank {members[me]} calls "
            f"{_call(signature, inputs)}{_at(where.here())}"
        )


def _at(line: str) -> str:
    return f" at {line}" if line else ""


def _some(members: Sequence[int]) -> str:
    some = ", ".join(map(str, members[:_SHOWN]))
    return some if len(members) <= _SHOWN else f"{some}, ... {len(members)} in all"


def _call(signature: Signature, inputs: Any) -> str:
    reduction, root = signature[1:3]
    tensors = inputs if isinstance(inputs, (list, tuple)) else ()
    if tensors:
        sizes = [shown(tensor) for tensor in tensors]
    else:
        pairs = zip(signature[3::2], signature[4::2], strict=True)
        sizes = [f"{str(dtype).removeprefix('torch.')} [{count}]" for dtype, count in pairs]
    text: str = signature[0]
    if sizes:
        text += " of " + ", ".join(sizes[:_SHOWN])
    if len(sizes) > _SHOWN:
        text += f" and {len(sizes) - _SHOWN} more tensors"
    if reduction >= 0:
        text += f", {NAMES.get(reduction, reduction)}"
    if root >= 0:
        text += f", root {root}"
    return text
