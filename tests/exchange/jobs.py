"""Jobs of the files exchange in this process, stepped by hand."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from codistill_ext import CodistillConfig, CodistillParallel, ModelGroups
from codistill_ext.exchange.wire.background import BackgroundWorker
from codistill_ext.exchange.wire.foreign_files import open_directory
from codistill_ext.exchange.wire.weight_file import WeightFile, read_weights
from codistill_ext.exchange.wire.weights import WeightPacker
from tests.core.training import LR, batches, build
from tests.naive import Net

PUBLISHER, READER = "publisher", "reader"
THREADS = PUBLISHER, READER


class Job:
    """One job of a model, in this process, that is stepped by hand."""

    def __init__(self, directory: Path, index: int, **options: Any) -> None:
        settings = {"models": 2, "exchange": "files", "period": 2, "lag": 0, "timeout": 5.0} | options
        self.config = CodistillConfig(dir=str(directory), model_index=index, **settings)
        self.groups = ModelGroups.create(self.config)
        self.module = build(index)
        self.model = CodistillParallel(self.module, self.groups, self.config)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LR, momentum=0.9)

    def step(self, count: int = 1, *, settle: tuple[str, ...] = THREADS) -> int:
        """Train ``count`` updates; how many peers taught in the last one."""
        for _ in range(count):
            x, y = batches(self.model.updates, self.groups.model_index, self.groups.data_rank, coordinated=False)
            logits = self.model(x)
            term = self.model.codistill(x, logits)
            self.optimizer.zero_grad()
            (F.cross_entropy(logits, y) + term.loss).backward()
            self.optimizer.step()
            self.model.after_update()
            self.settle(settle)
        return term.peers

    def thread(self, name: str) -> BackgroundWorker:
        exchange = self.model.exchange
        return exchange._publisher.worker if name == PUBLISHER else exchange._worker

    def settle(self, threads: tuple[str, ...] = THREADS) -> None:
        """Let the threads finish, so that a test does not depend on their speed."""
        for name in threads:
            self.thread(name).submit(lambda: None).result()

    def state(self) -> dict[str, Any]:
        model = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        return {
            "model": model,
            "optimizer": self.optimizer.state_dict(),
            "codistill": self.model.codistill_state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.model.load_codistill_state_dict(state["codistill"])


def newest(directory: Path, index: int) -> Path:
    return sorted((directory / f"model{index}").glob("*.safetensors"))[-1]


def read(path: Path) -> WeightFile:
    with open_directory(path.parent) as directory:
        return read_weights(path, directory, lambda _: WeightPacker(Net()))
