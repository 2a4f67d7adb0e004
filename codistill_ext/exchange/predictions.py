"""Exchange of predictions on coordinated data: every step, and nothing is computed twice."""

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from codistill_ext.config import CodistillConfig
from codistill_ext.errors import CoordinationError
from codistill_ext.exchange.base import Batch, Exchange
from codistill_ext.exchange.wire.announcements import Announcement, Positions, Poster
from codistill_ext.exchange.wire.channel import Channel, Header, Round
from codistill_ext.exchange.wire.encoding import build_encoding
from codistill_ext.groups import ModelGroups
from codistill_ext.loss import Target
from codistill_ext.topology import students_of


class PredictionExchange(Exchange):
    """Each rank sends its predictions to its counterparts in the models that learn from this one.

    A round is a call of ``begin``. Rounds are counted, not optimizer steps, so that a model that
    skips a step (overflow) stays together with the others.
    """

    def __init__(self, groups: ModelGroups, config: CodistillConfig) -> None:
        super().__init__(groups, config)
        self.students = students_of(config.peers, groups.model_index)
        self.channel = Channel(groups, {*self.peers, *self.students}, timeout_s=config.timeout, traffic=self.traffic)
        self.encoding = build_encoding(config)
        self.round = 0
        self._outputs: int | None = None  # of the last mini-batch; known before a forward pass from the second on
        self._foreseen: Announcement | None = None
        self._poster = Poster(self.channel)
        self._posted: Future[Round] | None = None

    def announce(
        self, inputs: Any, *, update: int, wanted: bool, rows: int | None = None, positions: Positions | None = None
    ) -> None:
        """The header of the round is on its way while the model computes, if all of it is known."""
        if self._posted is not None:
            raise CoordinationError(
                f"{self.groups.name} announced two mini-batches at update {update}, but asked for the term of none "
                f"between them: let each announcement be followed by one codistillation term"
            )
        self._foreseen = Announcement(inputs, checked=self._is_checked, rows=rows, positions=positions)
        if self._foreseen.knows_rows and self._outputs is not None:
            self._posted = self._poster.post(self._foreseen, self._header(self._outputs, update, wanted))

    def foresee(self, inputs: Any, *, update: int) -> None:
        known = self._foreseen is not None and self._foreseen.is_of(inputs)
        if self._posted is None and self._is_checked and not known:
            self._foreseen = Announcement(inputs, checked=True)

    @property
    def _is_checked(self) -> bool:
        """Whether the models prove in this round that they read the same batch."""
        return self.config.check_every > 0 and self.round % self.config.check_every == 0

    def begin(self, batch: Batch, *, update: int, wanted: bool) -> Callable[[], Sequence[Target]]:
        rows, outputs = batch.student.shape
        round_ = self._round(batch, update, wanted)
        # While the peers' headers are on their way; most probably they want what this model wants.
        outgoing = self.encoding.encode(batch.student) if self.students and wanted else []
        mine, others = round_.header, self.channel.answers(round_)
        self.round += 1
        self.peer_updates = {peer: other.update for peer, other in others.items()}
        for peer, other in others.items():
            self._check(mine, peer, other)
        wanting = [peer for peer in self.students if peer in others and others[peer].wants]
        if wanting and not outgoing:
            outgoing = self.encoding.encode(batch.student)
        receives = {
            peer: self.encoding.empty(rows, outputs, batch.student.device)
            for peer in self.peers
            if peer in others and wanted
        }
        wait = self.channel.start(dict.fromkeys(wanting, outgoing), receives, "predictions")

        def targets() -> list[Target]:
            wait()
            return [self.encoding.decode(payload, outputs) for payload in receives.values()]

        return targets

    def _round(self, batch: Batch, update: int, wanted: bool) -> Round:
        """This round, posted before the forward pass or now."""
        rows, outputs = batch.student.shape
        foreseen, posted = self._foreseen, self._posted
        self._foreseen, self._posted, self._outputs = None, None, outputs
        if posted is not None and foreseen is not None:
            round_ = posted.result()
            expected = foreseen.complete(self._header(outputs, update, wanted))
            if round_.header != expected or expected.rows != rows or not foreseen.is_of(batch.inputs):
                raise CoordinationError(
                    f"{self.groups.name} announced another mini-batch than the one whose term is asked for at update "
                    f"{update}: {round_.header} and {rows} rows of {outputs} outputs. Announce the inputs, and the "
                    f"mask or the number of rows, with which the term is asked for"
                )
            return round_
        if foreseen is None or not foreseen.is_of(batch.inputs):
            foreseen = Announcement(batch.inputs, checked=self._is_checked)
        header = foreseen.complete(self._header(outputs, update, wanted))
        return self.channel.post(dataclasses.replace(header, rows=rows))

    def _header(self, outputs: int, update: int, wanted: bool) -> Header:
        return Header(round=self.round, update=update, outputs=outputs, wants=int(wanted))

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
        if self._posted is not None:
            raise CoordinationError(
                f"{self.groups.name} ends at update {update} after a mini-batch that it announced, whose term its "
                f"peers now wait for: let each announcement be followed by one codistillation term"
            )
        self.channel.leave(Header(leaving=1, round=self.round, update=update))

    def close(self) -> None:
        self._poster.close()
        self.channel.close()

    def state_dict(self) -> dict[str, Any]:
        return {"round": self.round, "traffic": self.groups.gather_in_model(self.traffic.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.round = state["round"]
        self._load_traffic(state["traffic"])
