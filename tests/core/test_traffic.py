"""Bytes: predicted, counted, and what the kernel saw on the sockets."""

import os
import socket
import struct
import sys
from typing import Any

import pytest
import torch
import torch.distributed as dist

from codistill_ext import CodistillConfig, CodistillParallel, ModelGroups
from codistill_ext.exchange.weights import WeightPacker
from codistill_ext.traffic import predicted_predictions, predicted_weights
from tests.core.training import build, train
from tests.naive import Net
from tests.ranks import run_ranks

WIDTH, ROWS, OUTPUTS, UPDATES = 8, 4000, 400, 6


def test_the_table_of_the_paper() -> None:
    """Section 2 of the project's notes on the paper: per worker and update, float32 and top-64."""
    config = CodistillConfig(models=2)
    top = CodistillConfig(models=2, encoding="topk")
    assert predicted_predictions(config, 0, rows=32, outputs=1000)["sent/predictions"] == 128_000
    assert predicted_predictions(config, 0, rows=3584, outputs=32768)["sent/predictions"] == 469_762_048
    assert predicted_predictions(top, 0, rows=32, outputs=1000)["sent/predictions"] == 8_192
    assert predicted_predictions(top, 0, rows=3584, outputs=32768)["sent/predictions"] == 917_504
    weights = predicted_weights(
        CodistillConfig(models=2, exchange="checkpoints"), 0, model_bytes=25_600_000 * 4, ranks=1
    )
    assert weights["sent/weights"] / 2500 == pytest.approx(41_000, rel=0.01)


@pytest.mark.parametrize(
    "options",
    [
        {"models": 3, "topology": "0<-1,1<-0,2<-0"},
        {"models": 2, "encoding": "half"},
        {"models": 2, "encoding": "topk", "topk": 3},
        {"models": 3, "exchange": "checkpoints", "period": 2, "lag": 0, "topology": "ring"},
        {"models": 2, "exchange": "checkpoints", "period": 2, "lag": 1, "encoding": "half"},
    ],
    ids=lambda options: " ".join(f"{key}={value}" for key, value in options.items()),
)
def test_predicted_is_counted(options: dict[str, Any]) -> None:
    config = CodistillConfig(**options)
    for result in run_ranks(config.models, train, options, UPDATES):
        if config.exchange == "predictions":
            one, times = predicted_predictions(config, result["model"], rows=6, outputs=5), UPDATES
        else:
            size = WeightPacker(build(0), half=config.encoding == "half").total_bytes
            one, times = predicted_weights(config, result["model"], model_bytes=size, ranks=1), UPDATES // 2
        for key, value in one.items():
            assert result["traffic"][key] == value * times


def _received_bytes() -> int:
    """Bytes that the kernel has received on this process's TCP connections (tcp_info, since Linux 4.1)."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            connection = socket.socket(fileno=os.dup(int(name)))
        except OSError:  # no socket, or closed meanwhile
            continue
        with connection:
            if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.type == socket.SOCK_STREAM:
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136)
                total += struct.unpack_from("Q", info, 128)[0]  # tcpi_bytes_received
    return total


def _exchange_much(rank: int, options: dict[str, Any]) -> tuple[int, int]:
    """Bytes that the kernel received for this rank while the models exchanged, and what it counted."""
    config = CodistillConfig(**options)
    groups = ModelGroups.create(config)
    torch.manual_seed(rank)
    module = Net(width=WIDTH if config.exchange == "predictions" else 900, outputs=OUTPUTS)
    model = CodistillParallel(module, groups, config)
    x = torch.ones(ROWS, 8)
    dist.barrier()
    before = _received_bytes()
    for _ in range(UPDATES):
        with torch.no_grad():
            model.codistill(x, model(x))
        model.after_update()
    dist.barrier()
    moved = _received_bytes() - before
    return moved, sum(count for key, count in model.exchange.traffic.to_dict().items() if key.startswith("received/"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux' tcp_info")
@pytest.mark.parametrize(
    "options",
    [{"models": 2}, {"models": 2, "exchange": "checkpoints", "period": 1, "lag": 0}],
    ids=["predictions", "checkpoints"],
)
def test_counted_is_what_crossed_the_sockets(options: dict[str, Any]) -> None:
    for moved, counted in run_ranks(2, _exchange_much, options):
        assert counted > 15_000_000
        assert moved == pytest.approx(counted, rel=0.05)
