"""Exchange of predictions on coordinated data: every step, and nothing is computed twice."""

from typing import Any

from codistill_ext.config import CodistillConfig
from codistill_ext.errors import CoordinationError
from codistill_ext.exchange.base import Batch, Exchange
from codistill_ext.exchange.wire.channel import Channel, Header
from codistill_ext.exchange.wire.encoding import build_encoding
from codistill_ext.groups import ModelGroups
from codistill_ext.loss import Target
from codistill_ext.sampling import fingerprint
from codistill_ext.topology import students_of


class PredictionExchange(Exchange):
    """Each rank sends its predictions to its counterparts in the models that learn from this one.

    A round is a call of ``targets``. Rounds are counted, not optimizer steps, so that a model that
    skips a step (overflow) stays together with the others.
    """

    def __init__(self, groups: ModelGroups, config: CodistillConfig) -> None:
        super().__init__(groups, config)
        self.students = students_of(config.peers, groups.model_index)
        self.channel = Channel(groups, {*self.peers, *self.students}, timeout_s=config.timeout, traffic=self.traffic)
        self.encoding = build_encoding(config)
        self.round = 0

    def targets(self, batch: Batch, *, update: int, wanted: bool) -> list[Target]:
        mine = self._header(batch, update, wanted)
        others = self.channel.meet(mine)
        self.round += 1
        self.peer_updates = {peer: other.update for peer, other in others.items()}
        for peer, other in others.items():
            self._check(mine, peer, other)
        wanting = [peer for peer in self.students if peer in others and others[peer].wants]
        outgoing = self.encoding.encode(batch.student) if wanting else []
        rows, outputs = batch.student.shape
        receives = {
            peer: self.encoding.empty(rows, outputs, batch.student.device)
            for peer in self.peers
            if peer in others and wanted
        }
        self.channel.transfer(dict.fromkeys(wanting, outgoing), receives, "predictions")
        return [self.encoding.decode(payload, outputs) for payload in receives.values()]

    def _header(self, batch: Batch, update: int, wanted: bool) -> Header:
        rows, outputs = batch.student.shape
        check_every = self.config.check_every
        checked = check_every > 0 and self.round % check_every == 0
        return Header(
            round=self.round,
            update=update,
            rows=rows,
            outputs=outputs,
            wants=int(wanted),
            fingerprint=fingerprint(batch.inputs) if checked else 0,
        )

    def _check(self, mine: Header, peer: int, other: Header) -> None:
        here, there = self.groups.name, self.groups.describe(peer)
        if mine.outputs != other.outputs:
            raise CoordinationError(
                f"{here} has {mine.outputs} outputs and {there} has {other.outputs}: predictions can only be "
                f"exchanged between models with the same classes or vocabulary"
            )
        if mine.rows != other.rows or mine.fingerprint != other.fingerprint:
            raise CoordinationError(
                f"{here} and {there} read different mini-batches at update {mine.update} (exchange {mine.round}): "
                f"{mine.rows} rows with fingerprint {mine.fingerprint:#x} and {other.rows} rows with fingerprint "
                f"{other.fingerprint:#x}. Exchanging predictions needs coordinated data: the same data seed, batch "
                f"size and order, and augmentation seeded by sample, not by rank"
            )

    def after_update(self, update: int) -> None:
        pass

    def report(self, update: int) -> dict[str, float]:
        return {f"staleness/{peer}": 0.0 for peer in self.peers if peer in self.channel.active}

    def leave(self, update: int) -> None:
        self.channel.leave(Header(leaving=1, round=self.round, update=update))

    def close(self) -> None:
        self.channel.close()

    def state_dict(self) -> dict[str, Any]:
        return {"round": self.round, "traffic": self.groups.gather_in_model(self.traffic.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.round = state["round"]
        self._load_traffic(state["traffic"])
