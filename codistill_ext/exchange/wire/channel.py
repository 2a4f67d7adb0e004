"""Control messages between this rank and its counterparts in the other models.

Small integers over gloo, on the CPU, whatever the device: who is still there, which round this
is, and what the payload will look like. Because both sides read them before any payload moves, a
peer that stopped, or that is somewhere else, is an error with a name and never a hang.
"""

import contextlib
import datetime
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass, fields
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from codistill_ext.errors import CoordinationError, PeerTimeoutError
from codistill_ext.exchange.wire.counter import TrafficCounter
from codistill_ext.groups import ModelGroups

_FOREVER = datetime.timedelta(days=365)
_LAST_CHANCE_S = 0.05  # for the rest of the peers once one has used up the time


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a rank tells its counterparts at the beginning of a round; all integers.

    Attributes:
        leaving: 1 if this model has finished and takes part no more.
        round: how many rounds this rank has held.
        update: how many optimizer steps this model has tried.
        rows, outputs: shape of the predictions, or 0.
        wants: 1 if this model will use what it is sent.
        fingerprint: of the mini-batch, or 0 when it is not compared.
        time_ms: the sender's clock, milliseconds since the epoch.
    """

    leaving: int = 0
    round: int = 0
    update: int = 0
    rows: int = 0
    outputs: int = 0
    wants: int = 0
    fingerprint: int = 0
    time_ms: int = 0

    def to_tensor(self) -> Tensor:
        return torch.tensor(astuple(self), dtype=torch.int64)

    @classmethod
    def from_tensor(cls, tensor: Tensor) -> "Header":
        return cls(**dict(zip([field.name for field in fields(cls)], tensor.tolist(), strict=True)))


Works: TypeAlias = dict[int, tuple[dist.Work, Tensor]]


@dataclass(frozen=True)
class Round:
    """A round whose headers are on their way.

    Attributes:
        sends, receives: by peer, with the memory they use.
    """

    header: Header
    sends: Works
    receives: Works


class Channel:
    """A gloo group of this rank and its counterparts, and who of them is still there.

    Every rank of the job must construct it, at the same place in the program.

    Attributes:
        waited_s: seconds that the host has waited for peers, their headers and payloads together.
    """

    def __init__(
        self, groups: ModelGroups, neighbours: Iterable[int], *, timeout_s: float, traffic: TrafficCounter
    ) -> None:
        self.groups = groups
        self.active = sorted(neighbours)
        self.timeout_s = timeout_s
        self.traffic = traffic
        self.group = groups.new_peer_group(timeout_s)
        self.waited_s = 0.0
        self._farewells: list[tuple[dist.Work, Tensor]] = []

    def meet(self, header: Header) -> dict[int, Header]:
        """Hold a round: swap headers with all counterparts that are still there.

        Every rank of every model that has not left must hold the same rounds.

        Returns:
            the header of each counterpart that stays; who is leaving is no longer in ``active``.

        Raises:
            PeerTimeoutError: someone did not come; names who.
            CoordinationError: someone is in another round.
        """
        return self.answers(self.post(header))

    def post(self, header: Header) -> Round:
        """Begin a round: send this rank's header and go on. ``answers`` must follow before the next round or leave."""
        return Round(header, *self._post(header))

    def answers(self, round_: Round) -> dict[int, Header]:
        """Wait for the counterparts' headers of a round; returns and raises as ``meet``."""
        header, receives = round_.header, round_.receives
        self._wait(receives, header)
        self._wait(round_.sends, header)
        headers = {peer: Header.from_tensor(tensor) for peer, (_, tensor) in receives.items()}
        self.active = [peer for peer in self.active if not headers[peer].leaving]
        staying = {peer: headers[peer] for peer in self.active}
        for peer, other in staying.items():
            if other.round != header.round:
                raise CoordinationError(
                    f"{self.groups.name} is in exchange {header.round} of update {header.update}, but "
                    f"{self.groups.describe(peer)} is in exchange {other.round} of update {other.update}: one of "
                    f"them skipped or repeated a mini-batch. Give both the same batches an update, and let every "
                    f"forward pass in training be followed by one codistillation term"
                )
        return staying

    def _post(self, header: Header) -> tuple[Works, Works]:
        sends, receives = {}, {}
        for peer in self.active:
            rank = self.groups.counterpart(peer)
            outgoing, incoming = header.to_tensor(), torch.empty(len(fields(Header)), dtype=torch.int64)
            sends[peer] = (_posted(dist.isend(outgoing, rank, group=self.group)), outgoing)
            receives[peer] = (_posted(dist.irecv(incoming, rank, group=self.group)), incoming)
            self.traffic.sent["control"] += outgoing.nbytes
            self.traffic.received["control"] += incoming.nbytes
        return sends, receives

    def _wait(self, works: Works, header: Header) -> None:
        start = time.monotonic()
        deadline = start + self.timeout_s
        missing: dict[int, str] = {}
        for peer, (work, _) in works.items():
            left_s = max(_LAST_CHANCE_S, deadline - time.monotonic())
            try:
                work.wait(datetime.timedelta(seconds=left_s))
            except RuntimeError as error:
                missing[peer] = str(error).splitlines()[0]
        self.waited_s += time.monotonic() - start
        if missing:
            names = ", ".join(self.groups.describe(peer) for peer in missing)
            raise PeerTimeoutError(
                f"{self.groups.name} waited in exchange {header.round} of update {header.update}, but {names} did "
                f"not come within {self.timeout_s:g} s or has ended. Look for the first error in its log; if it is "
                f"only slow, raise --codistill-timeout ({next(iter(missing.values()))})"
            )

    def transfer(self, outgoing: dict[int, list[Tensor]], incoming: dict[int, list[Tensor]], kind: str) -> None:
        """Move contiguous payload tensors, CPU ones here over gloo, CUDA ones in the device's peer group.

        Both sides must have agreed on it in ``meet``. For CUDA tensors the current stream waits,
        not the host.
        """
        self.start(outgoing, incoming, kind)()

    def start(
        self, outgoing: dict[int, list[Tensor]], incoming: dict[int, list[Tensor]], kind: str
    ) -> Callable[[], None]:
        """Begin to move payloads as ``transfer`` does; what it returns waits for them, and is to be called once."""
        operations = []
        # Receives first: of two ranks that begin with a large send, gloo moves one direction after the other.
        for peer, tensor in _in_order(incoming):
            operations.append(self._operation(dist.irecv, tensor, peer))
            self.traffic.received[kind] += tensor.nbytes
        for peer, tensor in _in_order(outgoing):
            operations.append(self._operation(dist.isend, tensor, peer))
            self.traffic.sent[kind] += tensor.nbytes
        with self._names_losses(kind):
            works = dist.batch_isend_irecv(operations) if operations else []

        def wait() -> None:
            start = time.monotonic()
            with self._names_losses(kind):
                for work in works:
                    work.wait()
            operations.clear()  # until now it has kept the memory that is sent
            self.waited_s += time.monotonic() - start

        return wait

    @contextlib.contextmanager
    def _names_losses(self, kind: str) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError:
            raise  # this rank's own
        except RuntimeError as error:
            raise PeerTimeoutError(
                f"{self.groups.name} lost the connection to a peer while {kind} were on their way, or waited longer "
                f"than {self.timeout_s:g} s (--codistill-timeout): {error}"
            ) from error

    def _operation(self, kind: Callable[..., Any], tensor: Tensor, peer: int) -> dist.P2POp:
        group = self.group if tensor.device.type == "cpu" else self.groups.peer_group
        return dist.P2POp(kind, tensor, self.groups.counterpart(peer), group=group)

    def leave(self, header: Header) -> None:
        """Tell the counterparts that this model takes part no more; returns at once.

        They read it in their next round. ``close`` waits until all have.
        """
        sends, receives = self._post(header)
        self._farewells += [*sends.values(), *receives.values()]
        self.active = []

    def close(self) -> None:
        """Wait until every farewell has been read, however long the others train."""
        for work, _ in self._farewells:
            try:
                work.wait(_FOREVER)
            except RuntimeError:
                pass  # the peer has ended meanwhile, so it needs no farewell
        self._farewells = []


def _in_order(tensors: dict[int, list[Tensor]]) -> Iterator[tuple[int, Tensor]]:
    """By peer, and each peer's in their own order, which is how the two sides' operations find each other."""
    return ((peer, tensor) for peer in sorted(tensors) for tensor in tensors[peer])


def _posted(work: dist.Work | None) -> dist.Work:
    assert work is not None, "this rank is not in its own peer group"
    return work
