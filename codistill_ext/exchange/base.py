"""What every exchange promises to the wrapper."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from codistill_ext.config import CodistillConfig
from codistill_ext.exchange.wire.announcements import Positions
from codistill_ext.exchange.wire.counter import TrafficCounter
from codistill_ext.groups import ModelGroups
from codistill_ext.loss import Target
from codistill_ext.rows import LogitRows


@dataclass(frozen=True)
class Batch:
    """One mini-batch as an exchange sees it.

    Attributes:
        inputs: what the module is called with: a tensor, a sequence of arguments or a mapping of
            keyword arguments.
        student: this model's logits, one row a sample or token that counts.
        rows_of: turns what a module returned for ``inputs`` into rows like the student's: of logits, or of the hidden
            states that ``head`` makes logits of.
        autocast: the type that the student's forward pass was cast to, or None.
        head: the name of the module's output layer, if the module returns hidden states.
    """

    inputs: Any
    student: LogitRows
    rows_of: Callable[[Any], Tensor]
    autocast: torch.dtype | None
    head: str = ""


class Exchange(ABC):
    """How knowledge gets from peers to this model. The only object with collectives between models.

    Every rank of every model constructs it and calls its methods in the same order as its
    counterparts, until its model leaves.

    Attributes:
        peer_updates: the update that each peer is at, where peers are met at every mini-batch.
    """

    def __init__(self, groups: ModelGroups, config: CodistillConfig) -> None:
        self.groups = groups
        self.config = config
        self.traffic = TrafficCounter()
        self.peers = config.peers[groups.model_index]
        self.peer_updates: dict[int, int] = {}

    def announce(
        self, inputs: Any, *, update: int, wanted: bool, rows: int | None = None, positions: Positions | None = None
    ) -> None:
        """What is known before the forward pass; ``begin`` follows with the same. Of no use to most exchanges.

        Args:
            rows: how many there will be, if that is known; or the ``positions`` that count.
        """
        self.foresee(inputs, update=update)

    def foresee(self, inputs: Any, *, update: int) -> None:
        """A forward pass of these inputs is about to begin, and perhaps ``begin`` follows. Tells nobody."""
        return

    @abstractmethod
    def begin(self, batch: Batch, *, update: int, wanted: bool) -> Callable[[], Sequence[Target]]:
        """Begin to get the predictions of each peer for this mini-batch.

        What it returns is to be called once, and waits for them: detached; empty when there is none.

        Args:
            update: optimizer steps tried so far.
            wanted: whether they will be used (alpha is not 0 at this update).
        """

    def targets(self, batch: Batch, *, update: int, wanted: bool) -> Sequence[Target]:
        """The same at once."""
        return self.begin(batch, update=update, wanted=wanted)()

    @abstractmethod
    def after_update(self, update: int) -> None:
        """To be called after each optimizer step, also one that was skipped; ``update`` counts it."""

    @abstractmethod
    def report(self, update: int) -> dict[str, float]:
        """How old what each peer teaches is, in updates and seconds: ``staleness/1``, ``staleness_seconds/1``."""

    @abstractmethod
    def leave(self, update: int) -> None:
        """This model has finished; its peers go on without it. Does not wait for them."""

    @abstractmethod
    def close(self) -> None:
        """Wait for what is still on its way, after ``leave``."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, plain values and tensors. All ranks of the model must call it."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a ``state_dict`` of this model. All ranks of the model must call it."""

    def _load_traffic(self, ranks: list[dict[str, int]]) -> None:
        """Continue the counts of this rank, which begin anew with another number of ranks."""
        if len(ranks) == self.groups.ranks_a_model:
            self.traffic.load_state_dict(ranks[self.groups.rank_in_model])
