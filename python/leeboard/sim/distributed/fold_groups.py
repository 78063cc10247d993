"""Groups of a folded run: who of them runs, and passes in what for whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from leeboard.sim.distributed.mesh import FoldError, Mesh


@dataclass
class Group:
    """A group as the program knows it, and its members that run."""

    name: str
    members: tuple[int, ...]
    # Number of the group of members that run, at the engine.
    live: int
    # For each member, the one that runs and passes in the same: its place among those that run.
    stand_in: list[int]
    # Whether all members run.
    whole: bool

    def aliases(self, index: Mapping[int, int]) -> dict[int, list[int]]:
        """For each member that runs (those of `index`), the copies that it stands for; places."""
        running = [i for i, member in enumerate(self.members) if member in index]
        aliases: dict[int, list[int]] = {place: [] for place in running}
        for i, standing in enumerate(self.stand_in):
            if running[standing] != i:
                aliases[running[standing]].append(i)
        return aliases


def make(
    mesh: Mesh, index: Mapping[int, int], name: str, members: tuple[int, ...], live: int
) -> Group:
    """A group, and who passes in what for whom.

    Args:
        mesh: The ranks.
        index: Those that run.
        name: Of the group.
        members: Of the group.
        live: The engine's number of the group of members that run.

    Raises:
        FoldError: For a member nobody runs.
    """
    running = [m for m in members if m in index]
    # The first that runs of each class.
    place: dict[int, int] = {}
    for i, member in enumerate(running):
        place.setdefault(int(mesh.representatives[member]), i)
    own = {member: i for i, member in enumerate(running)}
    stand_in = []
    for member in members:
        home = int(mesh.representatives[member])
        if home not in place:
            raise FoldError(
                f"fold: {mesh.describe(member)} is in group {name!r}, but {mesh.describe(home)}"
                ", which runs for it, is not: mark the axes along which they differ as "
                "distinct (*)"
            )
        stand_in.append(own.get(member, place[home]))
    return Group(name, members, live, stand_in, len(running) == len(members))
