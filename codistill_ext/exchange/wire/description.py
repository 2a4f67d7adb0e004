"""How to build a model's architecture again: a registered name and plain values, never code."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule


@dataclass(frozen=True)
class ModelDescription:
    """An architecture as it crosses to a peer.

    Attributes:
        name: of an architecture that the peer's trainer has registered.
        values: numbers, texts, truth values, None, and lists and mappings of these.
    """

    name: str
    values: Mapping[str, Any]

    def to_json(self) -> str:
        return json.dumps({"name": self.name, "values": self.values}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "ModelDescription":
        """Read a description.

        Raises:
            ValueError: it is not one.
        """
        try:
            loaded = json.loads(text)
            name, values = loaded["name"], loaded["values"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"not a description of a model ({error}): {text[:80]!r}") from error
        if not isinstance(name, str) or not isinstance(values, dict):
            raise ValueError(f"not a description of a model: {text[:80]!r}")
        return cls(name, values)


PeerBuilder = Callable[[ModelDescription], nn.Module]
"""Builds a peer's module, on the CPU, with whatever weights.

Raises:
    ValueError: the name is not registered, or a value is not one it takes.
"""


def describe_class(module: nn.Module) -> ModelDescription:
    """For a user's own module, which peers can only copy: its class, to be compared by name."""
    module = getattr(module, "_orig_mod", module)  # of torch.compile
    kind = type(module)
    if isinstance(module, FSDPModule):  # fully_shard puts a class of its own before the module's
        kind = kind.__mro__[kind.__mro__.index(FSDPModule) + 1]
    return ModelDescription(f"{kind.__module__}.{kind.__qualname__}", {})


def copies_only(description: ModelDescription) -> nn.Module:
    """The builder of a user's own loop: peers of the same architecture need none."""
    raise ValueError(
        f"the peer is another architecture ({description.name}): give CodistillParallel a description and a "
        f"build_peer function"
    )
