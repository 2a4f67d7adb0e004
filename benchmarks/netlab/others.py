"""Ways of libraries that this project does not need: SlowMo of fairscale, local SGD and DiLoCo of torchft.

They are installed beside it (``recipes/communication.sh``); one that is missing or fails is listed with its error.
"""

import datetime
import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.netlab.ways import LR, Alone, Spec, Way, cross_entropy

_PORT = 29510
_OUTER_LR, _OUTER_MOMENTUM = 0.7, 0.9  # of DiLoCo's paper, with Nesterov
_SLOW_MOMENTUM = 0.5  # fairscale's documentation: 0.5 for up to 4 nodes
_TIMEOUT = datetime.timedelta(seconds=120)


class SlowMo(Alone):
    """fairscale's SlowMo over local SGD: a momentum step between averages of the weights."""

    def __init__(self, spec: Spec, period: int) -> None:
        self._period = period
        super().__init__(spec)

    def wrap(self, module: nn.Module, spec: Spec) -> nn.Module:
        from fairscale.experimental.nn.data_parallel import SlowMoBaseAlgorithm, SlowMoDistributedDataParallel

        return SlowMoDistributedDataParallel(
            module,
            nprocs_per_node=1,
            slowmo_momentum=_SLOW_MOMENTUM,
            slowmo_base_algorithm=SlowMoBaseAlgorithm.LOCALSGD,
            localsgd_frequency=self._period,
            slowmo_frequency=self._period,
        )

    def step(self, x: Tensor, y: Tensor) -> None:
        super().step(x, y)
        self.module.perform_slowmo(self.optimizer)


class TorchFT:
    """torchft: every host is a replica of its own, and a lighthouse on the first one says who takes part."""

    def __init__(self, spec: Spec, period: int, *, diloco: bool) -> None:
        from torchft import Manager, ProcessGroupGloo
        from torchft.local_sgd import DiLoCo, LocalSGD

        rank, size = dist.get_rank(), dist.get_world_size()
        address = _own_address()
        # By its name a host tells the others where to meet, and the hosts of a lab share the machine's.
        socket.gethostname = _own_address
        lighthouse = _lighthouse(rank, size, address)
        torch.manual_seed(spec.seed)
        self.plain = self.module = spec.build().train()
        self.optimizer: torch.optim.Optimizer = torch.optim.SGD(self.module.parameters(), lr=LR, momentum=0.9)
        self._store = dist.TCPStore(address, 0, is_master=True, wait_for_workers=False)
        self._manager = Manager(
            pg=ProcessGroupGloo(timeout=_TIMEOUT),
            load_state_dict=self.module.load_state_dict,
            state_dict=self.module.state_dict,
            min_replica_size=size,
            use_async_quorum=False,
            timeout=_TIMEOUT,
            quorum_timeout=_TIMEOUT,
            rank=0,
            world_size=1,
            store_addr=address,
            store_port=self._store.port,
            lighthouse_addr=lighthouse,
            replica_id=f"host{rank}",
            hostname=address,
        )
        self._context: Any
        if diloco:
            outer = torch.optim.SGD(self.module.parameters(), lr=_OUTER_LR, momentum=_OUTER_MOMENTUM, nesterov=True)
            self._context = DiLoCo(self._manager, [self.module], self.optimizer, outer, period)
        else:
            self._context = LocalSGD(self._manager, self.module, self.optimizer, period)
        self._context.__enter__()

    def step(self, x: Tensor, y: Tensor) -> None:
        self.optimizer.zero_grad()
        cross_entropy(self.module(x), y).backward()
        self.optimizer.step()

    def close(self) -> None:
        self._context.__exit__(None, None, None)
        self._manager.shutdown(wait=False)


_kept: list[Any] = []  # servers that live as long as the process


def _lighthouse(rank: int, size: int, address: str) -> str:
    """Every rank calls it; the first one starts the server."""
    box: list[Any] = [None]
    if rank == 0:
        from torchft.coordination import LighthouseServer

        _kept.append(LighthouseServer(bind=f"0.0.0.0:{_PORT + len(_kept)}", min_replicas=size))
        box = [f"http://{address}:{_PORT + len(_kept) - 1}"]
    dist.broadcast_object_list(box, src=0)
    return str(box[0])


def _own_address() -> str:
    """Of this host's link: torchrun has been told it."""
    return os.environ["NETLAB_ADDRESS"]


WAYS: dict[str, Callable[[Spec], Way]] = {
    "slowmo-16": lambda spec: SlowMo(spec, 16),
    "torchft-local-sgd-16": lambda spec: TorchFT(spec, 16, diloco=False),
    "torchft-diloco-16": lambda spec: TorchFT(spec, 16, diloco=True),
}
