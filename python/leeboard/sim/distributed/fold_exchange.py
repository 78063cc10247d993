"""Exchanges for tensors without values, and for groups most of whose members are copies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from leeboard.sim.distributed.exchange import Exchange, Meeting, Move, Signature
from leeboard.sim.distributed.fake import is_fake

if TYPE_CHECKING:
    from leeboard.sim.distributed.fold import FoldCore


class FakeExchange(Exchange):
    """Moves what has values; what has none needs no moving."""

    def keep(self, key: tuple[int, int]) -> None:
        """See `Exchange`."""
        if not is_fake(self._sent.get(key)):
            super().keep(key)

    def collect(self, meeting: Meeting, me: int, move: Move, outs: Sequence[Tensor]) -> None:
        """See `Exchange`."""
        fake = any(map(is_fake, (*outs, *(meeting.inputs[me] or ()))))
        super().collect(meeting, me, _nothing if fake else move, outs)

    def _fill(self, tensor: Tensor, out: Tensor) -> None:
        if not (is_fake(tensor) or is_fake(out)):
            super()._fill(tensor, out)


def _nothing(meeting: Meeting, me: int, outs: Sequence[Tensor]) -> None:
    """No values."""


class FoldExchange(FakeExchange):
    """Copies pass in what the member passes in that stands for them.

    Args:
        core: Knows who that is.
    """

    def __init__(self, core: FoldCore) -> None:
        super().__init__()
        self._core = core
        self._aliases: dict[int, dict[int, list[int]]] = {}

    def post(self, key: tuple[int, int], tensor: Tensor) -> None:
        """See `Exchange`. The serial tells messages apart; who sent is seen differently by each."""
        super().post((0, key[1]), tensor)

    def keep(self, key: tuple[int, int]) -> None:
        """See `Exchange`."""
        super().keep((0, key[1]))

    def take(self, key: tuple[int, int], me: int, tag: int, out: Tensor) -> None:
        """See `Exchange`."""
        super().take((0, key[1]), me, tag, out)

    def join(
        self, group: int, number: int, me: int, size: int, signature: Signature, inputs: Any
    ) -> Meeting:
        """See `Exchange`."""
        key = (group, number)
        aliases = self._aliases.get(group)
        if aliases is None:
            aliases = self._aliases[group] = self._core.aliases(group)
        if key not in self._meetings:
            self._meetings[key] = _FoldMeeting(self, key, size, signature, aliases)
        meeting = super().join(group, number, me, size, signature, inputs)
        for member in aliases[me]:
            meeting.inputs[member] = inputs
        return meeting


class _FoldMeeting(Meeting):
    """A meeting to which copies do not come.

    Attributes:
        aliases: For each member that runs, the copies that it stands for, by place in the group.
    """

    __slots__ = ("aliases",)

    def __init__(
        self,
        exchange: Exchange,
        key: tuple[int, int],
        size: int,
        signature: Signature,
        aliases: dict[int, list[int]],
    ) -> None:
        super().__init__(exchange, key, size, signature)
        self.aliases = aliases
        # Copies have gone before they came.
        self.left = size - len(aliases)

    def keep(self, me: int) -> None:
        """See `Meeting`."""
        super().keep(me)
        for member in self.aliases[me]:
            self.inputs[member] = self.inputs[me]
