"""Which peers a model learns from."""

import re
from functools import cache

_EDGE = re.compile(r"\s*(\d+)\s*<-\s*(\d+)\s*")


@cache
def peers_of_each(topology: str, models: int) -> tuple[tuple[int, ...], ...]:
    """The peers of each model, ascending.

    Args:
        topology: ``all``; ``ring`` (model i learns from i+1); or directed edges
            ``student<-teacher`` separated by commas. A model without an edge into it only teaches.
        models: how many models there are.

    Raises:
        ValueError: the text cannot be read, or names a model that does not exist.
    """
    if topology == "all":
        return tuple(tuple(peer for peer in range(models) if peer != model) for model in range(models))
    if topology == "ring":
        return tuple(tuple({(model + 1) % models} - {model}) for model in range(models))
    peers: list[set[int]] = [set() for _ in range(models)]
    for edge in topology.split(","):
        match = _EDGE.fullmatch(edge)
        if match is None:
            raise ValueError(
                f"--codistill-topology is all, ring, or edges such as '0<-1,1<-0', but {edge!r} is none of these"
            )
        student, teacher = int(match[1]), int(match[2])
        if student == teacher or max(student, teacher) >= models:
            raise ValueError(
                f"--codistill-topology edge {edge.strip()!r}: an edge joins two different models of 0..{models - 1}"
            )
        peers[student].add(teacher)
    return tuple(tuple(sorted(group)) for group in peers)


def students_of(peers: tuple[tuple[int, ...], ...], model: int) -> tuple[int, ...]:
    """The models that learn from ``model``, ascending."""
    return tuple(student for student, teachers in enumerate(peers) if model in teachers)
