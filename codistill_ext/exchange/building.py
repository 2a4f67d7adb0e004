"""How a teacher's module comes to be: a copy of the student's, or built from a description; sharded alike."""

import copy
from collections.abc import Callable

import torch
from torch import nn

from codistill_ext.exchange.wire.description import ModelDescription, PeerBuilder, copies_only
from codistill_ext.exchange.wire.shards import is_sharded, materialise, skeleton

Shard = Callable[[nn.Module], nn.Module]


class TeacherBuilder:
    """Builds modules of teachers, with whatever weights.

    A sharded module cannot be copied. So if ``shard`` is to shard the student, the builder must be made before: it
    keeps a copy of the module without memory, of which ``shard`` makes teachers in the same way.

    Args:
        module: the student's, as it was handed in.
        description: of its architecture.
        build_peer: builds a peer's module from its description; where ``module`` is sharded already, sharded alike.
        shard: shards the student over the ranks of its model, or wraps it in another way; None if nothing does.
    """

    def __init__(
        self, module: nn.Module, description: ModelDescription, build_peer: PeerBuilder, shard: Shard | None = None
    ) -> None:
        self._module, self._description = module, description
        self._build_peer, self._shard = build_peer, shard
        self._skeleton = None if shard is None or is_sharded(module) else skeleton(module)

    def build(self, description: ModelDescription, device: torch.device) -> nn.Module:
        """The module of a peer of this architecture, on ``device``. All ranks of a model must call it together.

        Raises:
            ValueError: it cannot be built.
        """
        sharded = is_sharded(self._module)
        if description == self._description and not sharded:
            return copy.deepcopy(self._module)
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # initial weights must not disturb the student's dropout
            if not sharded:
                return self._build_peer(description).to(device)
            return self._sharded(description, device)

    def _sharded(self, description: ModelDescription, device: torch.device) -> nn.Module:
        if description == self._description and self._skeleton is not None:
            module = copy.deepcopy(self._skeleton)
        elif description == self._description and self._build_peer is copies_only:
            raise ValueError(
                "a module that is sharded already cannot be copied for its peers' teachers: give CodistillParallel a "
                "build_peer function that builds and shards another one, or the module unsharded and a data_parallel "
                "function that shards it"
            )
        else:
            module = self._build_peer(description)
        if self._shard is not None:
            module = self._shard(module)
        if not is_sharded(module):
            raise ValueError(
                f"the model is sharded, but build_peer built a teacher ({description.name}) that is not: let it "
                f"shard the teacher in the same way"
            )
        materialise(module, device)
        return module
