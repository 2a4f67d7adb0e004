"""Ways to train on several hosts: what a user would pick, by its own library, and codistillation in its forms."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, post_localSGD_hook, powerSGD_hook
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.optim import PostLocalSGDOptimizer
from torch.nn.parallel import DistributedDataParallel

from codistill_ext import CodistillConfig, CodistillParallel, ModelGroups, model_seed

LR = 1e-3
_POWER_SGD_RANK = 2  # the matrices' rank; torch's documentation begins with 1 or 2


@dataclass(frozen=True)
class Spec:
    """What every way is told.

    Attributes:
        build: makes the model, with whatever initial weights torch's seed gives.
        megabytes_a_bucket: of gradients that DistributedDataParallel sums at a time.
        warm_up: updates in which gradients are averaged before local SGD, or compression, begins.
    """

    build: Callable[[], nn.Module]
    megabytes_a_bucket: float = 25.0
    seed: int = 0
    warm_up: int = 0


class Way(Protocol):
    """One way to train. Every rank of the job constructs it and calls its methods together.

    Attributes:
        optimizer: whose learning rate and weight decay may be set before each step.
        plain: the module as one would evaluate it.
    """

    optimizer: Any
    plain: nn.Module

    def step(self, x: Tensor, y: Tensor) -> None:
        """One update."""

    def close(self) -> None:
        """Take leave of the other ranks."""


class Alone:
    """No traffic at all: what the computation takes."""

    def __init__(self, spec: Spec) -> None:
        torch.manual_seed(spec.seed)
        self.plain = spec.build().train()
        self.module = self.wrap(self.plain, spec)
        self.optimizer = self.optimize(torch.optim.SGD(self.module.parameters(), lr=LR, momentum=0.9))

    def wrap(self, module: nn.Module, spec: Spec) -> nn.Module:
        return module

    def optimize(self, optimizer: torch.optim.Optimizer) -> Any:
        return optimizer

    def step(self, x: Tensor, y: Tensor) -> None:
        self.optimizer.zero_grad()
        cross_entropy(self.module(x), y).backward()
        self.optimizer.step()

    def close(self) -> None:
        pass


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2), y.flatten())


class DataParallel(Alone):
    """DistributedDataParallel, with a communication hook or without."""

    def __init__(self, spec: Spec, hook: str = "") -> None:
        self._hook = hook
        super().__init__(spec)

    def wrap(self, module: nn.Module, spec: Spec) -> nn.Module:
        wrapped = DistributedDataParallel(module, bucket_cap_mb=spec.megabytes_a_bucket, gradient_as_bucket_view=True)
        if self._hook == "fp16":
            wrapped.register_comm_hook(None, default_hooks.fp16_compress_hook)
        elif self._hook == "power_sgd":
            state = powerSGD_hook.PowerSGDState(
                None, matrix_approximation_rank=_POWER_SGD_RANK, start_powerSGD_iter=max(2, spec.warm_up)
            )
            wrapped.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        return wrapped


class PostLocalSGD(Alone):
    """torch's post-local SGD: weights are averaged every ``period`` updates."""

    def __init__(self, spec: Spec, period: int) -> None:
        self._period, self._warm_up = period, spec.warm_up
        super().__init__(spec)

    def wrap(self, module: nn.Module, spec: Spec) -> nn.Module:
        # The averager gives parameters contiguous memory, and DistributedDataParallel reads what a hook returns in the
        # order of the parameter's memory: of weights that are channels last it would mix up the gradients.
        module = module.to(memory_format=torch.contiguous_format)
        wrapped = DistributedDataParallel(module, bucket_cap_mb=spec.megabytes_a_bucket)
        alone, _ = dist.new_subgroups(1)
        state = post_localSGD_hook.PostLocalSGDState(None, alone, start_localSGD_iter=spec.warm_up)
        wrapped.register_comm_hook(state, post_localSGD_hook.post_localSGD_hook)
        return wrapped

    def optimize(self, optimizer: torch.optim.Optimizer) -> Any:
        return PostLocalSGDOptimizer(optimizer, PeriodicModelAverager(period=self._period, warmup_steps=self._warm_up))


class Codistilled:
    """CodistillParallel; ``hosts_a_model`` ranks in a row train a model with DistributedDataParallel."""

    def __init__(self, spec: Spec, ranks_a_model: int, options: dict[str, Any]) -> None:
        self.config = CodistillConfig(models=dist.get_world_size() // ranks_a_model, timeout=300.0, **options)
        groups = ModelGroups.create(self.config)
        torch.manual_seed(model_seed(spec.seed, groups.model_index))

        def data_parallel(module: nn.Module, groups: ModelGroups) -> nn.Module:
            group = groups.model_group
            return DistributedDataParallel(module, process_group=group, bucket_cap_mb=spec.megabytes_a_bucket)

        data_parallel_or_none = data_parallel if ranks_a_model > 1 else None
        self.plain = spec.build().train()
        self.model = CodistillParallel(self.plain, groups, self.config, data_parallel=data_parallel_or_none)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LR, momentum=0.9)

    def step(self, x: Tensor, y: Tensor) -> None:
        self.optimizer.zero_grad()
        self.model.announce(x, rows=y.numel())
        logits = self.model(x)
        torch.autograd.backward(cross_entropy(logits, y) + self.model.codistill(x, logits).loss)
        self.optimizer.step()
        self.model.after_update()

    def skip_to_exchange(self) -> None:
        """Before the first step: weights cross after the second one, so that there are teachers to be measured."""
        if self.config.exchange == "checkpoints":
            self.model.updates = self.config.period - 2

    @property
    def waited_s(self) -> float:
        """For predictions of peers, their headers included; not for what is moved in the background."""
        channel = getattr(self.model.exchange, "channel", None)
        return channel.waited_s if channel is not None and self.config.exchange == "predictions" else 0.0

    def close(self) -> None:
        self.model.close()


_LAG = 5  # updates; the default is the 50th part of a period
CODISTILLED: dict[str, dict[str, Any]] = {
    "predictions-full": {},
    "predictions-half": {"encoding": "half"},
    "predictions-topk": {"encoding": "topk"},
    "checkpoints": {"exchange": "checkpoints", "period": 20, "lag": 10},
    "checkpoints-every4": {"exchange": "checkpoints", "period": 20, "lag": 10, "distill_every": 4},
    "checkpoints-t50": {"exchange": "checkpoints", "period": 50, "lag": _LAG},
    "checkpoints-t2500": {"exchange": "checkpoints", "lag": _LAG},
}
_OTHERS: dict[str, Callable[[Spec], Way]] = {
    "alone": Alone,
    "ddp": DataParallel,
    "ddp-fp16": lambda spec: DataParallel(spec, "fp16"),
    "ddp-powersgd": lambda spec: DataParallel(spec, "power_sgd"),
    "local-sgd-4": lambda spec: PostLocalSGD(spec, 4),
    "local-sgd-16": lambda spec: PostLocalSGD(spec, 16),
}
NAMES = (*_OTHERS, *CODISTILLED)


def build_way(name: str, spec: Spec, ranks_a_host: int) -> Way:
    """The way of this name. Every rank of the job must call it.

    Raises:
        ValueError: there is no such way.
    """
    if name in _OTHERS:
        return _OTHERS[name](spec)
    options, hosts_a_model = options_of(name)
    return Codistilled(spec, ranks_a_host * hosts_a_model, options)


def options_of(name: str) -> tuple[dict[str, Any], int]:
    """Options of codistillation, and hosts a model: ``NAME/m`` is m of them, ``NAME-ring`` has the topology.

    Raises:
        ValueError: there is no such way.
    """
    plain, _, hosts_a_model = name.partition("/")
    base = plain.removesuffix("-ring")
    if base not in CODISTILLED:
        raise ValueError(f"there is no way {name!r} to train: choose from {', '.join(NAMES)}")
    ring = {"topology": "ring"} if base != plain else {}
    return CODISTILLED[base] | ring, int(hosts_a_model or 1)
