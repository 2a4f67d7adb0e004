"""Shares of a model: the same bytes as a whole snapshot, in memory that is used again."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from codistill_ext import CodistillConfig, ModelGroups
from codistill_ext.exchange.wire import shares
from codistill_ext.exchange.wire.shards import Replicas
from codistill_ext.exchange.wire.shares import Inbox, Outbox
from codistill_ext.exchange.wire.weights import WeightPacker, share_bytes
from tests.ranks import run_ranks

CPU = torch.device("cpu")


class Odd(nn.Module):
    """Of several types and memory orders, with sizes that no share divides."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(5, 7, 3).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm1d(3)
        self.norm.running_mean.normal_()
        self.turned = nn.Parameter(torch.randn(11, 6).T)
        self.strided = nn.Parameter(torch.randn(26)[::2])
        self.scalar = nn.Parameter(torch.tensor(1e6))
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.small = nn.Parameter(torch.randn(9).to(torch.bfloat16))
        self.large = nn.Parameter(torch.tensor([-1e30, torch.inf, 65510.0, 65519.9, 65520.0, torch.nan]))
        self.precise = nn.Parameter(torch.randn(5, dtype=torch.float64))


def naive_row(packer: WeightPacker, module: nn.Module) -> Tensor:
    """Converted tensor by tensor, clamped before it is rounded."""
    row = torch.zeros(packer.total_bytes, dtype=torch.uint8)
    state = module.state_dict()
    for name, view in packer.views(row).items():
        tensor = state[name]
        if view.dtype == torch.float16:
            tensor = tensor.clamp(-65504, 65504).to(torch.float16)
        view.copy_(tensor)
    return row


@pytest.mark.parametrize("half", [False, True])
def test_shares_are_the_parts_of_a_snapshot(half: bool) -> None:
    module = Odd()
    packer = WeightPacker(module, half=half)
    expected = naive_row(packer, module)
    assert torch.equal(packer.pack(module), expected)
    for ranks in range(1, 9):
        size = share_bytes(packer.total_bytes, ranks)
        replicas = [Replicas(rank, ranks, None) for rank in range(ranks)]
        parts = [Outbox(packer, replica, None, CPU).copy(module).wait() for replica in replicas]
        assert all(len(share) == size for share in parts)
        joined = torch.cat(parts)
        assert torch.equal(joined[: len(expected)], expected) and not joined[len(expected) :].any()
        other = Odd(seed=1)
        for start in range(0, packer.total_bytes, size):
            packer.unpack_part(joined[start : min(start + size, packer.total_bytes)], start, other)
        found, wanted = packer.views(packer.pack(other)), packer.views(expected)
        for name, view in wanted.items():  # which of the NaNs it is may change
            torch.testing.assert_close(found[name], view, rtol=0, atol=0, equal_nan=True)


def test_memory_is_made_once() -> None:
    module = nn.Linear(300, 1000)
    packer = WeightPacker(module)
    outbox, inbox = (kind(packer, *rest) for kind, rest in ((Outbox, (ALONE, None, CPU)), (Inbox, (ALONE, CPU))))
    buffers = set()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        for _ in range(3):
            share, arrived = outbox.copy(module), inbox.buffers.take()
            arrived.wait().copy_(share.wait())
            inbox.load(arrived, module)
            outbox.buffers.give(share)
            buffers.add((share.row.data_ptr(), arrived.row.data_ptr()))
    assert len(buffers) == 1
    assert max(event.cpu_memory_usage for event in profile.events()) < 1000, "bytes; the model has 1.2 million"


ALONE = Replicas(0, 1, None)


def _join(rank: int) -> tuple[bool, bool, bool]:
    """A peer's shares, joined in pieces; running statistics are the first rank's."""
    shares._JOINED_BYTES = 96
    ModelGroups.create(CodistillConfig(models=1))
    replicas = Replicas(rank, dist.get_world_size(), dist.group.WORLD)
    module = Odd()
    packer = WeightPacker(module)
    expected = naive_row(packer, module)
    module.norm.running_mean.add_(rank)
    outbox, inbox = Outbox(packer, replicas, dist.group.WORLD, CPU), Inbox(packer, replicas, CPU)
    row = inbox.whole(outbox.copy(module))
    teacher = Odd(seed=1)
    inbox.load(outbox.copy(module), teacher)
    again = inbox.buffers.take() is not inbox.buffers.take()
    return torch.equal(row, expected), torch.equal(naive_row(packer, teacher), expected), again


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_join_their_shares_in_pieces(ranks: int) -> None:
    assert run_ranks(ranks, _join) == [(True, True, True)] * ranks
