"""Speculative decoding over a slow link: a drafter at the edge, the target on a server.

Rank 0 is the edge device, where the user is; rank 1 the server. Each round the drafter proposes
--depth tokens, one after another; the target reads them all in one pass, keeps the longest prefix
that it would have written itself and adds one token of its own (Leviathan et al., 2023). Greedy:
the text is that of the target alone, whatever the drafter proposes. Token ids go up; the number of
kept ones and the next token come back.

    --drafter edge     a round trip for every round, and a server that only verifies
    --drafter server   both models on the server; tokens stream to the edge as they are known
    --drafter none     the target alone on the server, streaming its tokens
    --overlap          with --drafter edge: go on drafting while the target verifies, in the hope
                       that everything is kept and the target's own token is the drafter's next

Which tokens are kept is real: the drafter is --draft-model with --draft-layers layers; of the same
model, its first layers. Or it is given: --acceptance 0.8,0.7 keeps the first token of a chain with
probability 0.8, and if it is kept the second with 0.7, which also holds for deeper ones (what
`leeboard draft probe` calls acceptance by depth). The drafter then proposes the target's tokens,
which it was told before the clock starts, or wrong ones; the work is the same.

    torchrun --nproc-per-node 2 -m leeboard.sim.strategies.speculative --check --tokens 32
    leeboard sim run --platform edge-server.yaml -m leeboard.sim.strategies.speculative -- \\
        --tokens 64 --depth 6 --acceptance 0.8,0.75,0.7 --overlap
"""

from __future__ import annotations

import argparse
import collections
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from leeboard.sim.strategies.deployment import (
    Place,
    check_options,
    compared,
    greedy,
    joined,
    parser,
    report,
    timings,
)
from leeboard.sim.strategies.llama import Config, config_of
from leeboard.sim.strategies.speculation import Chances, Drafter, Rounds, Target, longest

EDGE, SERVER = 0, 1
# Messages that the edge is ready for.
AHEAD = 32


def edge_drafts(place: Place, drafter: Drafter, rounds: Rounds) -> tuple[list[Tensor], list[float]]:
    """The edge's side of --drafter edge: the answer, and when each of its tokens was there."""
    options = place.options
    sees = not options.no_sampling
    prompt = place.prompts()
    first = prompt.new_empty(1)
    going: list[tuple[dist.Work | None, Tensor]] = []
    going.append((dist.isend(prompt[0].contiguous(), SERVER), prompt))
    answer = dist.irecv(first, SERVER)
    drafter.read(prompt)
    assert answer is not None
    answer.wait()
    text, times = [first], [place.now()]
    drafter.reset(1, first[None])
    while not rounds.over:
        depth = rounds.depth
        while len(drafter.ahead) < depth:
            drafter.propose()
        drafts = drafter.ahead[:depth]
        drafter.ahead = drafter.ahead[depth:]
        reply = prompt.new_empty(2)
        answer = dist.irecv(reply, SERVER)
        assert answer is not None
        if depth:
            packed = torch.cat(drafts)
            going.append((dist.isend(packed, SERVER), packed))
        # The guess of the target's own token, and after it the next round's proposals.
        most = depth + 1 + options.depth
        while options.overlap and drafter.depth < rounds.chain + most and not answer.is_completed():
            drafter.propose()
        answer.wait()
        kept = int(reply[0]) if sees else rounds.drawn()
        hit = False
        if options.overlap and kept == depth:
            if not drafter.ahead:
                # Nothing was drafted meanwhile: this is where it starts.
                drafter.propose()
            hit = torch.equal(drafter.ahead[0], reply[1:]) if sees else rounds.guessed(kept)
        text += [*drafts[:kept], reply[1:]]
        times += [place.now()] * (kept + 1)
        rounds.end(kept, hit)
        if hit:
            drafter.ahead = drafter.ahead[1:]
        else:
            read = drafter.cache.length - drafter.prompt
            missing = max(1, min(2, rounds.written - read))
            drafter.reset(rounds.written, torch.cat(text[-missing:])[None])
    for work, _ in going:
        if work is not None:
            work.wait()
    return text, times


def server_verifies(place: Place, target: Target, rounds: Rounds) -> None:
    """The server's side of --drafter edge."""
    options = place.options
    prompt = torch.empty(options.prompt, dtype=torch.int64, device=place.device)
    dist.recv(prompt, EDGE)
    last = reply = target.read(prompt[None])
    while True:
        # Ready for the next proposals before the edge hears that it may send them.
        drafts = prompt.new_empty(0 if rounds.over else rounds.depth)
        coming = dist.irecv(drafts, EDGE) if len(drafts) else None
        dist.send(reply, EDGE)
        if rounds.over:
            break
        if coming is not None:
            coming.wait()
        written = target.verify(last, drafts)
        kept = rounds.drawn() if options.no_sampling else longest(drafts, written)
        target.keep(len(drafts), kept)
        last = written[kept : kept + 1]
        reply = torch.cat((torch.full_like(last, kept), last))
        # The edge drafts ahead and keeps what it guessed right: here only the draws need to know.
        hit = options.no_sampling and options.overlap and rounds.guessed(kept)
        rounds.end(kept, hit)


def server_streams(place: Place, target: Target, drafter: Drafter | None, rounds: Rounds) -> None:
    """The server's side of --drafter server and none: it does all, and tells the edge."""
    options = place.options
    prompt = torch.empty(options.prompt, dtype=torch.int64, device=place.device)
    dist.recv(prompt, EDGE)
    last = target.read(prompt[None])
    going = [(dist.isend(last, EDGE), last)]
    if drafter is not None:
        drafter.read(prompt[None])
        drafter.reset(1, last[None])
    while not rounds.over:
        depth = rounds.depth
        drafts = prompt[:0]
        if drafter is not None and depth:
            for _ in range(depth):
                drafter.propose()
            drafts = torch.cat(drafter.ahead)
        written = target.verify(last, drafts)
        kept = 0
        if depth:
            kept = rounds.drawn() if options.no_sampling else longest(drafts, written)
        target.keep(depth, kept)
        last = written[kept : kept + 1]
        # All equally long, so that the edge can be ready for them: [kept, tokens..., filling].
        filling = last.new_zeros(rounds.most - depth)
        message = torch.cat((torch.full_like(last, kept), written, filling))
        going.append((dist.isend(message, EDGE), message))
        rounds.end(kept, False)
        if drafter is not None and not rounds.over:
            read = drafter.cache.length - drafter.prompt
            missing = max(1, min(2, rounds.written - read))
            tail = written[: kept + 1][-missing:]
            drafter.reset(rounds.written, tail[None])
    for work, _ in going:
        assert work is not None
        work.wait()


def edge_listens(place: Place, rounds: Rounds) -> tuple[list[Tensor], list[float]]:
    """The edge's side of --drafter server and none."""
    prompt = place.prompts()
    dist.send(prompt[0].contiguous(), SERVER)
    first = prompt.new_empty(1)
    dist.recv(first, SERVER)
    text, times = [first], [place.now()]
    coming: collections.deque[tuple[dist.Work | None, Tensor]] = collections.deque()
    while not rounds.over:
        # Ready for as many as will come at least: a sender that waits to be asked would pay the
        # delay for each.
        while len(coming) < min(rounds.left, AHEAD):
            message = prompt.new_empty(rounds.most + 2)
            coming.append((dist.irecv(message, SERVER), message))
        work, message = coming.popleft()
        assert work is not None
        work.wait()
        if place.options.no_sampling:
            kept = rounds.drawn() if rounds.depth else 0
        else:
            kept = int(message[0])
        text += [message[number : number + 1] for number in range(1, kept + 2)]
        times += [place.now()] * (kept + 1)
        rounds.end(kept, False)
    return text, times


def told(place: Place, holder: int) -> Tensor | None:
    """The target's answer and a little more, on the rank that drafts, before the clock starts."""
    options = place.options
    count = options.tokens + 2 * options.depth + 2
    if place.rank == SERVER:
        truth = greedy(place, place.prompts(), count)[0][0]
        if holder == SERVER:
            return truth
        dist.send(truth, EDGE)
        return None
    if holder == SERVER:
        return None
    truth = torch.empty(count, dtype=torch.int64, device=place.device)
    dist.recv(truth, SERVER)
    return truth


def run(place: Place, draft: Config, chances: Chances | None) -> dict[str, Any]:
    """Both ranks; figures on rank 0."""
    options = place.options
    holder = EDGE if options.drafter == "edge" else SERVER
    truth = None
    if chances is not None and not options.no_sampling:
        truth = told(place, holder)
    drafts = options.drafter != "none" and place.rank == holder
    drafter = Drafter(place, draft, chances, truth) if drafts else None
    target = Target(place) if place.rank == SERVER else None
    rounds = Rounds(options, chances)
    dist.barrier()
    began = place.now()
    if target is not None:
        if options.drafter == "edge":
            server_verifies(place, target, rounds)
        else:
            server_streams(place, target, drafter, rounds)
        return rounds.figures()
    if drafter is not None:
        text, times = edge_drafts(place, drafter, rounds)
    else:
        text, times = edge_listens(place, rounds)
    figures = timings(began, times, 1) | rounds.figures()
    if options.check:
        figures |= compared(place, torch.cat(text)[None], None)
    if not options.no_sampling:
        figures["output"] = torch.cat(text).tolist()
    return figures


def chances_of(options: argparse.Namespace) -> Chances | None:
    """What --acceptance says.

    Raises:
        SystemExit: not probabilities.
    """
    if options.acceptance is None:
        return None
    try:
        by_depth = [float(part) for part in options.acceptance.split(",")]
    except ValueError:
        by_depth = [-1.0]
    if not all(0 <= chance <= 1 for chance in by_depth):
        raise SystemExit(
            f"--acceptance: got {options.acceptance!r}; expected probabilities such as 0.8,0.7"
        )
    return Chances(by_depth, options.seed)


def draft_of(options: argparse.Namespace, target: Config) -> Config:
    """The drafter's sizes.

    Raises:
        SystemExit: it speaks of other tokens than the target.
    """
    layers = options.draft_layers
    if layers is None and options.draft_model is None:
        layers = max(1, target.layers // 4)
    try:
        draft = config_of(options.draft_model or options.model, layers)
    except ValueError as error:
        raise SystemExit(f"--draft-{error}") from None
    if draft.vocab != target.vocab:
        raise SystemExit(
            f"--draft-model {draft.name} has {draft.vocab} tokens, --model {target.name} "
            f"{target.vocab}; they must be the same"
        )
    return draft


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs this rank; the figures are true on rank 0."""
    arguments = parser("speculative", __doc__)
    arguments.add_argument("--depth", type=int, default=4, help="proposals in a round (4)")
    arguments.add_argument(
        "--drafter", choices=("edge", "server", "none"), default="edge", help="(edge)"
    )
    arguments.add_argument("--overlap", action="store_true", help="draft while waiting")
    arguments.add_argument("--acceptance", metavar="P,P,...", help="by depth (real)")
    arguments.add_argument("--draft-model", help="sizes of the drafter (those of --model)")
    arguments.add_argument("--draft-layers", type=int, help="its layers (a quarter of --layers)")
    options = arguments.parse_args(argv)
    config = check_options(options)
    draft, chances = draft_of(options, config), chances_of(options)
    if options.batch != 1:
        raise SystemExit(f"--batch: got {options.batch}; expected 1: one user is served")
    if options.depth < 1:
        raise SystemExit(f"--depth: got {options.depth}; expected at least 1")
    if options.overlap and options.drafter != "edge":
        raise SystemExit(f"--overlap: with --drafter {options.drafter} nobody waits; drop it")
    if options.no_sampling and chances is None and options.drafter != "none":
        raise SystemExit("--no-sampling: nobody sees which proposals are right; give --acceptance")
    with joined(options) as place:
        if place.size != 2:
            raise SystemExit(f"got {place.size} ranks; expected 2: the edge device and the server")
        return report(place, f"speculative/{options.drafter}", run(place, draft, chances))


if __name__ == "__main__":
    main()
