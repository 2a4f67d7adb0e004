"""Bytes: predicted, counted, and what the kernel saw on the sockets."""

import os
import socket
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch

from codistill_ext import CodistillConfig, CodistillParallel, ModelGroups
from codistill_ext.exchange.wire.counter import KINDS
from codistill_ext.exchange.wire.weights import WeightPacker
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


Address: TypeAlias = tuple[str, int]


def _connections() -> Iterator[tuple[Address, Address, int]]:
    """This process's TCP connections: its own address, the other's, and bytes received (tcp_info, since Linux 4.1)."""
    for name in os.listdir("/proc/self/fd"):
        try:
            connection = socket.socket(fileno=os.dup(int(name)))
        except OSError:  # no socket, or closed meanwhile
            continue
        with connection:
            if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.type == socket.SOCK_STREAM:
                try:
                    other = connection.getpeername()[:2]
                except OSError:  # it listens
                    continue
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136)
                yield connection.getsockname()[:2], other, struct.unpack_from("Q", info, 128)[0]  # tcpi_bytes_received


def _received_bytes(groups: ModelGroups) -> Counter[int]:
    """Bytes that the kernel has received for this rank, by the rank that sent them. All ranks must call it."""
    mine = list(_connections())
    rank_of = {
        own: rank for rank, addresses in enumerate(groups.gather([own for own, _, _ in mine])) for own in addresses
    }
    received: Counter[int] = Counter()
    for _, other, count in mine:
        received[rank_of.get(other, -1)] += count
    return received


def _exchange_much(rank: int, options: dict[str, Any]) -> tuple[Counter[int], dict[str, int]]:
    """Bytes that this rank received from each other rank by the kernel, and what it counted and predicted of all."""
    config = CodistillConfig(**options)
    groups = ModelGroups.create(config)
    torch.manual_seed(rank)
    module = Net(width=WIDTH if config.exchange == "predictions" else 900, outputs=OUTPUTS)
    model = CodistillParallel(module, groups, config)
    x = torch.ones(ROWS if config.exchange == "predictions" else 4, 8)  # weights do not depend on it
    before = _received_bytes(groups)
    for _ in range(UPDATES):
        with torch.no_grad():
            model.codistill(x, model(x))
        model.after_update()
    moved = _received_bytes(groups) - before
    received = {kind: model.exchange.traffic.received[kind] for kind in KINDS}
    if config.exchange == "predictions":
        predicted = predicted_predictions(config, groups.model_index, rows=ROWS, outputs=OUTPUTS)
    else:
        size = WeightPacker(module, half=config.encoding == "half").total_bytes
        predicted = predicted_weights(config, groups.model_index, model_bytes=size, ranks=groups.data_size)
    return moved, received | {"predicted": UPDATES * sum(n for key, n in predicted.items() if "received" in key)}


CHECKPOINTS = {"exchange": "checkpoints", "period": 1, "lag": 0}


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux' tcp_info")
@pytest.mark.parametrize(
    ("options", "ranks"),
    [
        ({"models": 2}, 1),
        ({"models": 2, "encoding": "topk", "topk": 128}, 2),
        ({"models": 2, **CHECKPOINTS}, 1),
        ({"models": 2, **CHECKPOINTS, "encoding": "half"}, 2),
        ({"models": 3, **CHECKPOINTS, "topology": "ring"}, 1),
    ],
    ids=str,
)
def test_counted_is_what_crossed_the_sockets(options: dict[str, Any], ranks: int) -> None:
    config, world_size = CodistillConfig(**options), options["models"] * ranks
    for rank, (moved, counted) in enumerate(run_ranks(world_size, _exchange_much, options)):
        model, data_rank = divmod(rank, ranks)
        between = sum(count for sender, count in moved.items() if sender >= 0 and sender // ranks != model)
        from_peers = sum(moved[peer * ranks + data_rank] for peer in config.peers[model])
        assert counted["predicted"] > 5_000_000
        assert between == pytest.approx(sum(counted[kind] for kind in KINDS), rel=0.05)
        assert from_peers == pytest.approx(counted["predicted"], rel=0.05), "and by its counterparts alone"


def test_counted_is_the_size_of_the_files(tmp_path: Path) -> None:
    options = {"models": 2, "exchange": "files", "period": 1, "lag": 0, "dir": str(tmp_path)}
    configs = [CodistillConfig(**options, model_index=index) for index in range(2)]
    models = [CodistillParallel(Net(width=200), ModelGroups.create(config), config) for config in configs]
    x = torch.ones(4, 8)
    for _ in range(3):  # as many files of a model are kept
        for model in models:
            model.codistill(x, model(x))
            model.after_update()
            for worker in model.exchange._publisher.worker, model.exchange._worker:
                worker.submit(lambda: None).result()
    one = predicted_weights(configs[0], 0, model_bytes=WeightPacker(models[0].plain).total_bytes, ranks=1)
    sizes = [[path.stat().st_size for path in (tmp_path / f"model{index}").iterdir()] for index in range(2)]
    for index, model in enumerate(models):
        reads = 2 + index  # the first job found nothing at first
        traffic = model.exchange.traffic
        assert traffic.sent["weights"] == sum(sizes[index]) == pytest.approx(3 * one["sent/weights"], rel=0.05)
        assert traffic.received["weights"] == sum(sizes[1 - index][:reads])
        assert traffic.received["weights"] == pytest.approx(reads * one["received/weights"], rel=0.05)
        model.close()
