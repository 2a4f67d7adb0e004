"""Notices a training loop that never calls ``after_update``."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from codistill_ext.errors import CoordinationError
from codistill_ext.groups import ModelGroups

_SAMPLES = 8  # parameters that are looked at
_ELEMENTS = 1024  # of each
_PEERS_AHEAD = 10
_LOOK_EVERY = 10  # rounds, when a peer's updates go on and this model's do not
_LOOK_EVERY_ALONE = 100


class UpdateWatch:
    """Compares a model's count of updates, which stands still, with its weights and its peers' counts.

    That the count stands is no proof: a model may accumulate gradients over many mini-batches, and its
    peer over few. That the weights have moved by more than rounding meanwhile, is. A model that has called
    ``after_update`` once needs no watch any more.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._first: list[Tensor] | None = None
        self._first_of_peers: dict[int, int] = {}
        self._round = 0

    def check(self, groups: ModelGroups, update: int, peers: Mapping[int, int]) -> None:
        """To be called once a mini-batch as long as ``after_update`` has not been.

        Args:
            update: this model's; ``peers``: what those that are met each mini-batch are at, by model.

        Raises:
            CoordinationError: optimizer steps are not counted; names both ranks and updates where a peer is met.
        """
        if self._first is None:
            self._first = self._samples()
        self._round += 1
        ahead = {
            peer: there
            for peer, there in peers.items()
            if there - self._first_of_peers.setdefault(peer, there) >= _PEERS_AHEAD
        }
        if self._round % (_LOOK_EVERY if ahead else _LOOK_EVERY_ALONE) or not self._have_moved():
            return
        if ahead:
            seen = " and ".join(f"{groups.describe(peer)} is at update {there}" for peer, there in ahead.items())
        else:
            seen = "weights cross every so many updates, so none ever would"
        raise CoordinationError(
            f"{groups.name} is still at update {update} after {self._round} mini-batches, though its weights have "
            f"changed; {seen}. Call model.after_update() after each optimizer step, also after one that was skipped"
        )

    def _samples(self) -> list[Tensor]:
        """The beginnings of some trainable parameters; of sharded ones this rank's shards."""
        trainable = [_local(parameter) for parameter in self._module.parameters() if parameter.requires_grad]
        some = [tensor for tensor in trainable if tensor.numel() > 0]
        return [tensor.reshape(-1)[:_ELEMENTS].clone() for tensor in some[:: -(-len(some) // _SAMPLES) or 1]]

    def _have_moved(self) -> bool:
        """Most of them. It waits for the device, in a run that is wrong or accumulates over very many mini-batches."""
        assert self._first is not None
        pairs = zip(self._first, self._samples(), strict=True)
        moved = [not torch.allclose(now, then, rtol=16 * torch.finfo(then.dtype).eps, atol=0) for then, now in pairs]
        return sum(moved) > len(moved) / 2


def _local(parameter: nn.Parameter) -> Tensor:
    to_local = getattr(parameter, "to_local", None)  # of a DTensor
    return (parameter if to_local is None else to_local()).detach()
