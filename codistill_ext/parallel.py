"""The group-aware wrapper: a module, data-parallel among its own ranks, that knows its peers."""

import contextlib
import dataclasses
import hashlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from codistill_ext.config import CodistillConfig, flag
from codistill_ext.exchange import (
    Batch,
    Exchange,
    ModelDescription,
    PeerBuilder,
    TeacherBuilder,
    build_exchange,
    copies_only,
    describe_class,
)
from codistill_ext.exchange.wire.announcements import Positions
from codistill_ext.exchange.wire.shards import check_not_offloaded, is_sharded, local_part, without_reduction
from codistill_ext.groups import ModelGroups
from codistill_ext.head import head_logits
from codistill_ext.loss import CodistillTerm, alpha_at, codistillation_term
from codistill_ext.outputs import Spread, own_outputs
from codistill_ext.rows import DenseLogits, LogitRows
from codistill_ext.schedules import Curve, Horizon
from codistill_ext.watch import UpdateWatch

DataParallel = Callable[[nn.Module, ModelGroups], nn.Module]


class IdenticalModelsWarning(UserWarning):
    """Two models that read the same data start with the same weights."""


class CodistillParallel(nn.Module):
    """A module that trains data-parallel in its model group and learns from its peers.

    Every rank of the job must construct it, at the same place. With one model or ``alpha=0`` it is
    the module in DistributedDataParallel, or alone on one rank.

    Args:
        module: on its device; the ranks of a model begin with the weights of its first rank.
        groups: who trains which model.
        config: the options of the method, the same on all ranks.
        logits_of: picks the logits, shape (..., C), out of what the module returns; or the hidden states, with a
            ``head``.
        head: the name of the module's linear output layer, if the module in training and evaluation returns the
            hidden states before it, for ``codistill(inputs, hidden=...)``: then no tensor of all logits is made.
        data_parallel: wraps the module for the ranks of a model, when there are several, or shards it in place
            (``fully_shard`` over ``groups.model_mesh``); DistributedDataParallel unless given. Teachers of a sharded
            model go through it, too.
        description: how a peer builds this architecture; only where the models' architectures
            differ and their weights cross.
        build_peer: builds a peer's module from its description. A module that is sharded already needs it where
            weights cross, and it must shard what it builds in the same way.
        horizon: the length of the run, for an alpha with places in epochs, shares of the run or decays of the learning
            rate; ``set_horizon`` does the same later.

    Attributes:
        autocast: what the last forward pass was cast to, or None. A host that runs the module itself sets it.

    Raises:
        ValueError: the options, or the models where they must be alike, differ between ranks; or nothing would
            average the gradients of a module with DTensors.
    """

    def __init__(
        self,
        module: nn.Module,
        groups: ModelGroups,
        config: CodistillConfig,
        *,
        logits_of: Callable[[Any], Tensor] | None = None,
        head: str = "",
        data_parallel: DataParallel | None = None,
        description: ModelDescription | None = None,
        build_peer: PeerBuilder = copies_only,
        horizon: Horizon | None = None,
    ) -> None:
        super().__init__()
        if config.models != groups.num_models:
            raise ValueError(f"the options are for {config.models} models, the groups for {groups.num_models}")
        groups.check_equal("the codistillation options", config.to_dict())
        self.groups, self.config = groups, config
        self.updates = 0
        self._watch: UpdateWatch | None = UpdateWatch(module)
        self._has_left = False
        self._logits_of, self._head = logits_of or _identity, head
        self._positions: Positions | None = None  # that were announced
        self.autocast: torch.dtype | None = None
        wrap = _wrapper(module, groups, data_parallel)
        description = description or describe_class(module)
        # Made before the module is sharded: afterwards it cannot be copied.
        shard = wrap if data_parallel is not None and config.exchange != "predictions" else None
        builder = TeacherBuilder(module, description, build_peer, shard)
        self.module = module if wrap is None else wrap(module)
        if any(parameter.is_meta for parameter in module.parameters()):
            raise ValueError(
                "the module is on the meta device: let data_parallel give it memory and initial weights once it is "
                "sharded (to_empty, then the module's own initialisation), or hand it in with them"
            )
        check_not_offloaded(module)
        self._device_type = next(module.parameters()).device.type  # fairseq's wrapper moves the module
        # Behind a property, so that the module's name for its parameters stays "module.*" alone.
        self.__dict__["_plain"] = module
        self.exchange: Exchange | None = build_exchange(module, groups, config, description, builder)
        self._alpha: Curve | None = None
        if horizon is not None:
            self.set_horizon(horizon)
        if self.exchange is not None and config.coordinated:
            _warn_if_identical(module, groups)

    def set_horizon(self, horizon: Horizon) -> None:
        """Say how long the run is, before the first mini-batch. Every rank of the job must call it.

        Rank 0's word counts for all: alpha is the same function of the update for every model.

        Raises:
            ValueError: alpha does not fit the run.
        """
        if self.exchange is not None:
            self._alpha = self.config.alpha_schedule.resolve(self.groups.gather(horizon)[0], flag("alpha"))

    @property
    def alpha(self) -> float:
        """alpha_k, the weight of the term in the update that is now being made; 0 where nothing crosses."""
        if self.exchange is None:
            return 0.0
        if self._alpha is None:
            self._alpha = self.config.alpha_schedule.resolve(Horizon(), flag("alpha"))
        return alpha_at(self.config, self._alpha, self.updates)

    @property
    def plain(self) -> nn.Module:
        """The module itself, as one would save it or use it alone."""
        module: nn.Module = self.__dict__["_plain"]
        return module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        enabled = torch.is_autocast_enabled(self._device_type)
        self.autocast = torch.get_autocast_dtype(self._device_type) if enabled else None
        if self._device_type == "cuda" and self.exchange is not None and self.training and torch.is_grad_enabled():
            # Behind the forward pass the fingerprint would have to be waited for as long as it takes.
            self.exchange.foresee((args, kwargs), update=self.updates)
        return self.module(*args, **kwargs)

    def announce(self, inputs: Any, *, mask: Tensor | None = None, rows: int | None = None) -> None:
        """Say before a forward pass in training what it will be of: the peers' answer travels while the model computes.

        Only worth it with the exchange of predictions, and never needed; not every model has to do it. ``codistill``
        must follow, with the same inputs and the same mask. With a mask on CUDA it is what spares the host a wait for
        the device.

        Args:
            inputs, mask: as in ``codistill``.
            rows: how many positions the logits will have, where there is no mask.

        Raises:
            CoordinationError: the mini-batch that was announced before has not had its term.
        """
        if self.exchange is None:
            return
        self._positions = None if mask is None else Positions(mask)
        self.exchange.announce(inputs, update=self.updates, wanted=self.alpha > 0, rows=rows, positions=self._positions)

    def codistill(
        self,
        inputs: Any,
        logits: Tensor | None = None,
        *,
        hidden: Tensor | None = None,
        mask: Tensor | None = None,
        reduction: str = "mean",
    ) -> CodistillTerm:
        """The codistillation term of one training mini-batch; add its ``loss`` to the task loss.

        Every rank of every model that has not left must call it once a training mini-batch.

        Args:
            inputs: what the module was called with: a tensor, a sequence of arguments, or a
                mapping of keyword arguments.
            logits: what it returned, shape (..., C). A DTensor may be spread over ranks by C (tensor parallelism);
                the ``loss`` is one then, too.
            hidden: instead of logits, with a ``head``: the hidden states that it makes them of, shape (..., H).
            mask: shape (...), true where a position counts; padding is neither sent nor counted.
            reduction: ``mean`` or ``sum`` over the positions, as the task loss does it.

        Raises:
            ValueError: the logits are spread over ranks in another way, or with the top k as encoding; or hidden
                states are given without a ``head``, or logits with one.
            CoordinationError: a peer read other data, or is in another round; or ``after_update`` is never called.
            PeerTimeoutError: a peer did not come.
        """
        return self.begin_codistill(inputs, logits, hidden=hidden, mask=mask, reduction=reduction)()

    def begin_codistill(
        self,
        inputs: Any,
        logits: Tensor | None = None,
        *,
        hidden: Tensor | None = None,
        mask: Tensor | None = None,
        reduction: str = "mean",
    ) -> Callable[[], CodistillTerm]:
        """Begin what ``codistill`` does, with the same arguments; what it returns waits for the term, and is to be
        called once before ``after_update``.

        Between the two a further micro-batch may be computed: its forward pass hides the way of the predictions.
        """
        announced, self._positions = self._positions, None
        positions = announced if announced is not None and announced.mask is mask else None
        student, spread = self._student(logits, hidden, mask, positions)
        if self.exchange is None:
            return lambda: codistillation_term(student, [], self.config, alpha=0.0)
        alpha = self.alpha

        def rows_of(output: Any) -> Tensor:
            """A teacher's logits or hidden states as rows, of the outputs that this rank has."""
            return _rows(own_outputs(self._logits_of(output))[0], mask, positions)

        batch = Batch(inputs, student, rows_of, self.autocast, self._head)
        targets = self.exchange.begin(batch, update=self.updates, wanted=alpha > 0)
        if self._watch is not None:
            self._watch.check(self.groups, self.updates, self.exchange.peer_updates)

        def term() -> CodistillTerm:
            found = codistillation_term(
                student, targets(), self.config, alpha=alpha, reduction=reduction, spread=spread
            )
            return found if spread is None else dataclasses.replace(found, loss=spread.replicated(found.loss))

        return term

    def _student(
        self, logits: Tensor | None, hidden: Tensor | None, mask: Tensor | None, positions: Positions | None
    ) -> tuple[LogitRows, Spread | None]:
        """This model's logits as rows, and where the outputs are that this rank does not have."""
        if (hidden is None) != (not self._head) or (logits is None) != bool(self._head):
            raise ValueError(
                "codistill takes hidden=... of a CodistillParallel(..., head=...), and the logits of any other"
            )
        if hidden is not None:
            return head_logits(self.plain, self._head, _rows(hidden, mask, positions), dtype=self.autocast), None
        assert logits is not None
        logits, spread = own_outputs(logits)
        if spread is not None and spread.group is not None and self.config.encoding == "topk":
            raise ValueError(
                "a top k needs all outputs of a row on each rank, but the logits are spread over ranks: redistribute "
                "them, or use --codistill-encoding full or half"
            )
        return DenseLogits(logits, mask) if positions is None else DenseLogits.at(logits, positions.places), spread

    def after_update(self) -> None:
        """To be called after each optimizer step, on every rank; also when the step was skipped."""
        self.updates += 1
        self._watch = None
        if self.exchange is not None:
            self.exchange.after_update(self.updates)

    def report(self) -> dict[str, float]:
        """How old what each peer teaches is, for the log: flat keys such as ``staleness/1``."""
        return {} if self.exchange is None else self.exchange.report(self.updates)

    def leave(self) -> None:
        """This model has finished training; the others go on without it. On all its ranks.

        ``close`` does it too; call it before when there is something to do until the others have finished.
        """
        if self.exchange is not None and not self._has_left:
            self.exchange.leave(self.updates)
        self._has_left = True

    def close(self) -> None:
        """Leave, and wait until every model has finished, however long the others train on.

        Every rank of the job must call it before it ends.
        """
        self.leave()
        if self.exchange is not None:
            self.exchange.close()
        self.groups.wait_for_all()

    def no_sync(self) -> contextlib.AbstractContextManager[None]:
        """As DistributedDataParallel's: gradients of the micro-batches before the last stay local."""
        if is_sharded(self.module):
            return without_reduction(self.module)
        no_sync: Any = getattr(self.module, "no_sync", contextlib.nullcontext)
        context: contextlib.AbstractContextManager[None] = no_sync()
        return context

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Of the plain module: neither a prefix nor a teacher is in it."""
        return self.plain.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.plain.load_state_dict(*args, **kwargs)

    def codistill_state_dict(self) -> dict[str, Any]:
        """What the coupling needs to resume, without the module. All ranks of the model must call it."""
        state = None if self.exchange is None else self.exchange.state_dict()
        ranks = self.groups.ranks_a_model
        return {"config": self.config.to_dict(), "ranks_a_model": ranks, "updates": self.updates, "exchange": state}

    def load_codistill_state_dict(self, state: Mapping[str, Any], *, other_ranks: bool = False) -> None:
        """Continue the coupling. All ranks of the model must call it.

        Args:
            other_ranks: allow a state of another number of ranks a model; its tensors are those of this rank.

        Raises:
            ValueError: it was saved with other options, which it names, or another number of ranks a model.
        """
        self.check_codistill_state(state, other_ranks=other_ranks)
        self.updates = state["updates"]
        self._watch = UpdateWatch(self.plain)
        if self.exchange is not None:
            self.exchange.load_state_dict(state["exchange"])

    def check_codistill_state(self, state: Mapping[str, Any], *, other_ranks: bool = False) -> None:
        """Whether a state, with or without its tensors, is of a run like this one; raises as loading it does."""
        saved, now = state["config"], self.config.to_dict()
        differences = [
            f"{key}: {saved.get(key)!r} then, {now.get(key)!r} now"
            for key in sorted(saved | now)
            if saved.get(key) != now.get(key) and key not in ("timeout", "check_every", "dir", "settings")
        ]
        if differences:
            raise ValueError(
                f"this run was saved with other codistillation options ({'; '.join(differences)}): resume it with "
                f"the same ones, or begin a new run"
            )
        then, ranks = state["ranks_a_model"], self.groups.ranks_a_model
        if then != ranks and not other_ranks:
            # Data position and random states are of each rank.
            raise ValueError(
                f"this run was saved with another number of ranks a model ({then} then, {ranks} now): resume it with "
                f"as many processes as before, or begin a new run"
            )


def _identity(output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        raise TypeError(
            f"the module returned {type(output).__name__}, not logits: give CodistillParallel a logits_of function"
        )
    return output


def _rows(logits: Tensor, mask: Tensor | None, positions: Positions | None) -> Tensor:
    """Positions that count as rows: (..., C) to (N, C)."""
    if positions is not None:
        return positions.rows_of(logits)
    return (
        logits.reshape(-1, logits.size(-1)) if mask is None else logits[mask.to(logits.device)]
    )  # a teacher's may be the host


def _wrapper(
    module: nn.Module, groups: ModelGroups, data_parallel: DataParallel | None
) -> Callable[[nn.Module], nn.Module] | None:
    """What makes the module data-parallel, or None where that is not needed or done already."""
    if groups.model_group is None:
        return None
    if data_parallel is not None:
        return lambda module: data_parallel(module, groups)
    if not is_sharded(module):
        return lambda module: _distributed_data_parallel(module, groups)
    if groups.data_size > 1 and not any(isinstance(child, FSDPModule) for child in module.modules()):
        raise ValueError(
            f"the module has DTensors, but nothing averages its gradients over the {groups.data_size} ranks of a model "
            f"that read different data: shard it with fully_shard over groups.model_mesh, or give a data_parallel "
            f"function (lambda module, groups: module, if it is data-parallel already)"
        )
    return None


def _distributed_data_parallel(module: nn.Module, groups: ModelGroups) -> nn.Module:
    device = next(module.parameters()).device
    device_ids = [device] if device.type == "cuda" else None
    parallel = DistributedDataParallel(module, device_ids=device_ids, process_group=groups.model_group)
    _rehearse(parallel)
    return parallel


def _rehearse(parallel: DistributedDataParallel) -> None:
    """Let it arrange its buckets now, by a backward pass of zeros.

    It would do so behind its first real one, and three or more ranks add up in another order then: the first update of
    a resumed run would not be the one of the run that was not interrupted, bit for bit.
    """
    module = parallel.module
    parallel.module = _Zero(module)  # hooks of the module itself are not for this
    try:
        with torch.enable_grad():
            parallel().backward()
    finally:
        parallel.module = module
    parallel.zero_grad(set_to_none=True)


class _Zero(nn.Module):
    """The value 0, of all parameters of a module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module  # whose buffers are found here, too

    def forward(self) -> Tensor:
        trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        return torch.stack([parameter.flatten()[:0].sum().float() for parameter in trained]).sum()


def _warn_if_identical(module: nn.Module, groups: ModelGroups) -> None:
    """Models with the same data and the same weights stay the same: there is nothing to distil."""
    digest = hashlib.sha256()
    for parameter in module.parameters():
        digest.update(local_part(parameter.detach()).cpu().flatten().view(torch.uint8).numpy().data)
    models: dict[int, list[str]] = {}  # the digest of what each rank of a model holds
    for index, other in groups.gather((groups.model_index, digest.hexdigest())):
        models.setdefault(index, []).append(other)
    twins = sorted(index for index, digests in models.items() if digests == models[groups.model_index])
    if len(twins) > 1:
        warnings.warn(
            f"models {', '.join(map(str, twins))} start with the same weights and read the same data: unless their "
            f"dropout differs they stay the same and there is nothing to distil. Seed each model before you build it: "
            f"torch.manual_seed(model_seed(seed, groups.model_index))",
            IdenticalModelsWarning,
            stacklevel=3,
        )
