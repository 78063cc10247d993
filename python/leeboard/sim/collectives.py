"""Collectives: which algorithms there are, and what each costs where nothing is in its way."""

from __future__ import annotations

import math
from functools import cache
from typing import Literal

from leeboard import _C
from leeboard.sim.ops import ALGORITHMS, COLLECTIVES

# Of a message whose receive is posted when its send is, by handshake.
LATENCIES = {"eager": 1, "notify": 2, "request": 3}
# Chains pass on pieces of at most this many bytes (csrc/sim/collective.h).
_PIECE = 1 << 19


@cache
def supported(collective: str) -> tuple[str, ...]:
    """Algorithms of a collective, by name.

    Raises:
        ValueError: An unknown collective.
    """
    number = _number("collective", collective, COLLECTIVES)
    return tuple(name for i, name in enumerate(ALGORITHMS) if _C.sim_supports(number, i))


def closed_form(
    collective: str,
    algorithm: str,
    ranks: int,
    bytes: int,  # noqa: A002
    alpha: float,
    beta: float,
    *,
    gamma: float = 0.0,
    handshake: Literal["eager", "notify", "request"] = "eager",
    islands: int = 1,
) -> float:
    r"""Seconds that a collective takes on an idle network of full bisection, all ranks at once.

    With P ranks, n bytes and d = ceil(log2 P), eager:

    | | latencies | bytes sent in turn | bytes reduced |
    |---|---|---|---|
    | ring: reduce_scatter | P - 1 | n (P - 1) / P | n (P - 1) / P |
    | ring: all_gather | P - 1 | n (P - 1) | |
    | ring: all_reduce | 2 (P - 1) | 2 n (P - 1) / P | n (P - 1) / P |
    | ring: broadcast, reduce, of S pieces | P - 1 | n (P - 2 + S) / S | reduce: n (P - 2 + S) / S |
    | recursive doubling: all_reduce | d | d n | d n |
    | recursive doubling: all_gather | d | n (P - 1) | |
    | recursive halving: reduce_scatter | d | n (P - 1) / P | n (P - 1) / P |
    | dissemination: barrier | d | | |
    | binomial tree: broadcast, reduce | d | d n | reduce: d n |
    | binomial tree: scatter; gather | d | n (P - 1) / P; n (P - 1) | |
    | binomial tree: all_reduce, barrier | 2 d | 2 d n | d n |
    | direct: broadcast, all_gather, gather | 1 | n (P - 1) | |
    | direct: reduce, all_reduce | 1 | n (P - 1) | n (P - 1) |
    | direct: scatter, all_to_all; reduce_scatter | 1 | n (P - 1) / P | n (P - 1) / P |
    | pairwise: all_to_all; reduce_scatter | P - 1 | n (P - 1) / P | n (P - 1) / P |

    Where P is no power of two, recursive doubling and halving fold the ranks beyond the largest one
    into their neighbours first, and give them their result last; all_gather takes Bruck's rounds.
    For such P, folding and trees take at most what is given here, for powers of two exactly that.

    Of a message with a handshake a latency becomes two ("notify") or three ("request"), but where
    its receive was posted long before: down a tree.

    "hierarchical" on I islands of M ranks is the sum of what it consists of, with both ways the same
    alpha and beta: all_reduce of a reduce_scatter and an all_gather by ring within islands around an
    all_reduce by ring of 1 / M of the bytes across them; and so on (docs/sim/collectives.md).

    Source: R. Hockney, "The communication challenge for MPP", Parallel Computing 20, 1994 (a
    message takes alpha + n beta); R. Thakur, R. Rabenseifner, W. Gropp, "Optimization of collective
    communication operations in MPICH", IJHPCA 19(1), 2005 (the algorithms); J. Bruck et al., IEEE
    TPDS 8(11), 1997.

    Args:
        collective: Its name.
        algorithm: Its name; not gloo's own, which have no such form.
        ranks: P.
        bytes: n, of the tensor that a rank passes in (broadcast, scatter: that the root does).
        alpha: Seconds, one way.
        beta: Seconds a byte.
        gamma: Seconds a byte reduced.
        handshake: "eager": messages leave at once; "notify", "request": see `Protocol`.
        islands: Of "hierarchical", of equal size.

    Raises:
        ValueError: An unknown name, a collective without this algorithm, or one without a form;
            islands that do not divide the ranks.
    """
    if algorithm not in supported(collective):
        raise ValueError(
            f"algorithm: {collective} has none named {algorithm!r}, expected one of "
            f"{', '.join(supported(collective))}"
        )
    if algorithm in ("gloo_ring", "gloo_tree"):
        raise ValueError(f"algorithm: {algorithm} has no closed form")
    if handshake not in LATENCIES:
        raise ValueError(
            f"handshake: got {handshake!r}, expected one of {', '.join(map(repr, LATENCIES))}"
        )
    if ranks < 1 or bytes < 0:
        raise ValueError(f"ranks, bytes: got {ranks}, {bytes}, expected at least 1, 0")
    if not 1 <= islands <= ranks or ranks % islands:
        raise ValueError(f"islands: got {islands}, expected a divisor of {ranks} ranks")
    size = 0 if collective == "barrier" else bytes
    if algorithm != "hierarchical":
        return _flat(collective, algorithm, ranks, size, alpha, beta, gamma, handshake)
    if handshake != "eager":
        raise ValueError("handshake: a hierarchy has a closed form for eager only")
    return sum(
        _flat(*part, alpha, beta, gamma, handshake)
        for part in _parts(collective, ranks // islands, islands, size)
    )


def _parts(
    collective: str, within: int, across: int, size: float
) -> list[tuple[str, str, int, float]]:
    """What a hierarchy consists of: collective, algorithm, ranks, bytes."""
    match collective:
        case "all_reduce":
            part = size / within
            return [
                ("reduce_scatter", "ring", within, size),
                ("all_reduce", "ring", across, part),
                ("all_gather", "ring", within, part),
            ]
        case "reduce_scatter":
            return [
                ("reduce_scatter", "ring", within, size),
                ("reduce_scatter", "ring", across, size / within),
            ]
        case "all_gather":
            return [
                ("all_gather", "ring", across, size),
                ("all_gather", "ring", within, across * size),
            ]
        case "gather":
            return [
                ("gather", "binomial_tree", within, size),
                ("gather", "direct", across, within * size),
            ]
        case "scatter":
            return [
                ("scatter", "direct", across, size),
                ("scatter", "binomial_tree", within, size / across),
            ]
        case "all_to_all":
            return [(collective, "direct", within, size), (collective, "direct", across, size)]
        case "barrier":
            return [
                ("barrier", "binomial_tree", within, 0),
                ("barrier", "recursive_doubling", across, 0),
            ]
        case _:
            return [(collective, "binomial_tree", n, size) for n in (within, across)]


def _flat(
    collective: str,
    algorithm: str,
    ranks: int,
    size: float,
    alpha: float,
    beta: float,
    gamma: float,
    handshake: str,
) -> float:
    if ranks == 1:
        return 0.0
    if algorithm == "ring" and collective in ("broadcast", "reduce"):
        return _chain(collective == "reduce", ranks, size, alpha, beta, gamma, handshake)
    each = LATENCIES[handshake]
    if algorithm == "binomial_tree":
        latencies, sent, reduced = _tree(collective, ranks, size, handshake)
    elif algorithm == "recursive_doubling":
        latencies, sent, reduced = _doubling(collective, ranks, size)
        latencies *= each
    else:
        rounds, sent, reduced = _even(collective, algorithm, ranks, size)
        latencies = rounds * each
    return latencies * alpha + sent * beta + reduced * gamma


def _even(collective: str, algorithm: str, ranks: int, size: float) -> tuple[int, float, float]:
    """Rounds, bytes sent and bytes reduced of one rank where all do the same."""
    others = ranks - 1
    rounds = 1 if algorithm == "direct" else others
    whole, parts = float(size * others), size * others / ranks
    if collective == "all_reduce":
        return (2 * rounds, 2 * parts, parts) if algorithm == "ring" else (rounds, whole, whole)
    if collective == "reduce":
        return rounds, whole, whole
    if collective == "reduce_scatter":
        return rounds, parts, parts
    return rounds, parts if collective in ("scatter", "all_to_all") else whole, 0.0


def _doubling(collective: str, ranks: int, size: float) -> tuple[int, float, float]:
    if collective in ("all_gather", "barrier"):
        return (ranks - 1).bit_length(), float(size * (ranks - 1)), 0.0
    steps = ranks.bit_length() - 1
    extra = ranks - (1 << steps)
    folds = 1 if extra else 0
    if collective == "all_reduce":
        return steps + 2 * folds, float((steps + 2 * folds) * size), float((steps + folds) * size)
    # The half with more of the ranks that stand for two is the longer one.
    halves = [1 << k for k in range(steps)]
    kept = sum(half + min(half, extra) for half in halves) * size / ranks
    return steps + 2 * folds, kept + folds * (size + size / ranks), kept + folds * size


def _tree(collective: str, ranks: int, size: float, handshake: str) -> tuple[int, float, float]:
    depth = (ranks - 1).bit_length()
    each = LATENCIES[handshake]
    # Receives from above are posted before: only the first word of a receiver is waited for.
    up, down = depth * each, depth * each
    if handshake == "notify":
        down = depth if collective in ("all_reduce", "barrier") else depth + 1
    if collective in ("all_reduce", "barrier"):
        return up + down, 2.0 * depth * size, float(depth * size)
    if collective == "reduce":
        return up, float(depth * size), float(depth * size)
    if collective == "gather":
        return up, float(size * (ranks - 1)), 0.0
    sent = depth * size if collective == "broadcast" else size * (ranks - 1) / ranks
    return down, float(sent), 0.0


def _chain(
    reduce: bool, ranks: int, size: float, alpha: float, beta: float, gamma: float, handshake: str
) -> float:
    pieces = max(1, math.ceil(size / _PIECE))
    piece = size / pieces
    if handshake != "eager" and pieces > 1:
        raise ValueError(f"handshake: a chain of {pieces} pieces has a closed form for eager only")
    latencies = (ranks - 1) * alpha
    if handshake == "notify":
        latencies += alpha
    elif handshake == "request":
        latencies *= 3
    # One piece all the way, and the others behind it. A rank that both receives and sends reduces
    # between rounds; the ends of a chain of two overlap.
    cost = gamma if reduce else 0.0
    pace = beta + cost if ranks > 2 else max(beta, cost)
    return latencies + piece * ((ranks - 1) * (beta + cost) + (pieces - 1) * pace)


def _number(name: str, given: str, known: tuple[str, ...]) -> int:
    if given not in known:
        raise ValueError(f"{name}: got {given!r}, expected one of {', '.join(known)}")
    return known.index(given)
