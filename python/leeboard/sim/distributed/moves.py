"""What a rank gets out of a collective: each function fills the tensors of one member.

`inputs` holds what every member gave. What a member gave is kept by reference for as long as the
member is held up by the collective; when it goes on before the others have taken what they need,
its part is copied (`Meeting.keep`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from leeboard.sim.distributed.reduce import reduced

if TYPE_CHECKING:
    from leeboard.sim.distributed.exchange import Meeting

Tensors = Sequence[Tensor]


def fill(out: Tensor, value: Tensor) -> None:
    """Copy a tensor of as many elements, whatever the shapes."""
    try:
        out.copy_(value)
    except RuntimeError:
        # Another shape; or made in inference mode: gloo writes to such, torch does not outside it.
        value = value.reshape(out.shape)
        if out.is_inference():
            with torch.inference_mode():
                out.copy_(value)
        else:
            out.copy_(value)


def _joined(tensors: Tensors) -> Tensor:
    if len(tensors) == 1:
        return tensors[0]
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def nothing(meeting: Meeting, me: int, outs: Tensors) -> None:
    """A barrier."""


def all_reduce(meeting: Meeting, me: int, outs: Tensors) -> None:
    """Every member gets the reduction; of several tensors, as if they were one, as gloo does."""
    result = meeting.result
    if result is None:
        given, kind = meeting.inputs, meeting.reduction
        if len(outs) == 1:
            result = [reduced([tensors[0] for tensors in given], kind)]
        elif len({tensor.dtype for tensor in outs}) == 1:
            whole = reduced([_joined(tensors) for tensors in given], kind)
            result = torch.split(whole, [tensor.numel() for tensor in outs])
        else:
            result = [reduced(parts, kind) for parts in zip(*given, strict=True)]
        meeting.result = result
    if len(outs) == 1:
        fill(outs[0], result[0])
        return
    for out, value in zip(outs, result, strict=True):
        fill(out, value)


def reduce(meeting: Meeting, me: int, outs: Tensors) -> None:
    """The root gets the reduction."""
    if me == meeting.root:
        given = [tensors[0] for tensors in meeting.inputs]
        fill(outs[0], reduced(given, meeting.reduction, to_root=True))
        meeting.result = ()
    elif meeting.result is None:
        meeting.keep(me)


def reduce_scatter(meeting: Meeting, me: int, outs: Tensors) -> None:
    """Every member gets its chunk of the reduction of each tensor."""
    if meeting.result is None:
        meeting.result = [
            reduced(parts, meeting.reduction) for parts in zip(*meeting.inputs, strict=True)
        ]
    for out, value in zip(outs, meeting.result, strict=True):
        elements = out.numel()
        fill(out, value.reshape(-1)[me * elements : (me + 1) * elements])


def all_gather(meeting: Meeting, me: int, outs: Tensors) -> None:
    """`outs` has a tensor for each member, in order."""
    for out, (value,) in zip(outs, meeting.inputs, strict=True):
        if out is not value:
            fill(out, value)
    meeting.keep(me)


def all_gather_lists(meeting: Meeting, me: int, outs: Tensors) -> None:
    """`outs` has a tensor for each member, of each of several inputs."""
    number = 0
    for member in range(meeting.size):
        for value in meeting.inputs[member]:
            fill(outs[number], value)
            number += 1
    meeting.keep(me)


def all_gather_single(meeting: Meeting, me: int, outs: Tensors) -> None:
    """Every member gets all members' tensors end to end."""
    if meeting.result is None:
        meeting.result = [
            torch.cat([value.reshape(-1) for value in parts])
            for parts in zip(*meeting.inputs, strict=True)
        ]
    for out, value in zip(outs, meeting.result, strict=True):
        fill(out, value)


def broadcast(meeting: Meeting, me: int, outs: Tensors) -> None:
    """Every member gets the root's tensors."""
    if me == meeting.root:
        meeting.keep(me)
    else:
        for out, value in zip(outs, meeting.inputs[meeting.root], strict=True):
            fill(out, value)


def gather(meeting: Meeting, me: int, outs: Tensors) -> None:
    """The root gets all members' tensors, `outs` in order."""
    if me != meeting.root:
        if meeting.result is None:
            meeting.keep(me)
        return
    for out, (value,) in zip(outs, meeting.inputs, strict=True):
        if out is not value:
            fill(out, value)
    meeting.result = ()


def scatter(meeting: Meeting, me: int, outs: Tensors) -> None:
    """Every member gets its tensor of the root's list."""
    fill(outs[0], meeting.inputs[meeting.root][me])
    if me == meeting.root:
        meeting.keep(me)


def all_to_all_single(meeting: Meeting, me: int, outs: Tensors) -> None:
    """Every member's tensor is cut into equal parts, one for each member."""
    if meeting.result is None:
        size = meeting.size
        rows = torch.stack([value.reshape(size, -1) for (value,) in meeting.inputs])
        meeting.result = [rows.transpose(0, 1)]
    fill(outs[0], meeting.result[0][me])


def all_to_all(meeting: Meeting, me: int, outs: Tensors) -> None:
    """`outs` has a tensor from each member; each gave a tensor for each."""
    for source, (out, given) in enumerate(zip(outs, meeting.inputs, strict=True)):
        if given is None:
            # One that gives nothing to this member, which need not wait for it.
            continue
        value = given[me]
        if value.numel() != out.numel() or value.dtype != out.dtype:
            raise meeting.disagreement(source, me, value, out)
        fill(out, value)
    meeting.keep(me)
