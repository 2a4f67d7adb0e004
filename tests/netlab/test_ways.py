"""Other libraries' ways to train, as the lab starts them, against a naive walk."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.netlab.ways import LR, PostLocalSGD, Spec, cross_entropy
from tests.ranks import run_ranks

WARM_UP, PERIOD, UPDATES = 3, 2, 8


def _convolutions(memory_format: torch.memory_format) -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(24, 5))
    return net.to(memory_format=memory_format)  # type: ignore[call-overload, no-any-return]


def _batch(update: int, rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(10 * update + rank)
    return torch.randn(4, 3, 6, 6, generator=generator), torch.randint(0, 5, (4,), generator=generator)


def _trained(rank: int, memory_format: torch.memory_format) -> dict[str, Any]:
    way = PostLocalSGD(Spec(lambda: _convolutions(memory_format), seed=7, warm_up=WARM_UP), PERIOD)
    for update in range(UPDATES):
        way.step(*_batch(update, rank))
    return {name: value.detach().clone() for name, value in way.plain.state_dict().items()}


def _walked(ranks: int) -> list[dict[str, Tensor]]:
    """Gradients are averaged in the updates of the warm-up, then weights in each update that the period says."""
    torch.manual_seed(7)
    first = _convolutions(torch.contiguous_format)
    nets = [copy.deepcopy(first) for _ in range(ranks)]
    optimizers = [torch.optim.SGD(net.parameters(), lr=LR, momentum=0.9) for net in nets]
    for update in range(UPDATES):
        for rank, net in enumerate(nets):
            x, y = _batch(update, rank)
            optimizers[rank].zero_grad()
            cross_entropy(net(x), y).backward()
        twins = list(zip(*(net.parameters() for net in nets), strict=True))
        if update < WARM_UP:
            for parameters in twins:
                mean = torch.stack([p.grad for p in parameters if p.grad is not None]).mean(dim=0)
                for parameter in parameters:
                    parameter.grad = mean.clone()
        for optimizer in optimizers:
            optimizer.step()
        if update >= WARM_UP and (update - WARM_UP) % PERIOD == 0:
            for parameters in twins:
                mean = torch.stack([p.detach() for p in parameters]).mean(dim=0)
                for parameter in parameters:
                    parameter.data.copy_(mean)
    return [net.state_dict() for net in nets]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_post_local_sgd_averages_gradients_first_and_then_weights(memory_format: torch.memory_format) -> None:
    for found, expected in zip(run_ranks(2, _trained, memory_format), _walked(2), strict=True):
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
