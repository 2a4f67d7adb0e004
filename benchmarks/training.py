"""The training step whose time the benchmarks compare."""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codistill_ext import CodistillParallel, model_seed
from vision.models import build_model


def build(name: str, model_index: int, memory_format: torch.memory_format = torch.channels_last) -> nn.Module:
    torch.manual_seed(model_seed(0, model_index))
    return build_model(name, num_classes=10, image_sizes=(32, 32)).to(memory_format=memory_format).train()


def build_optimizer(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, nesterov=True)


def draw(
    batch: int, generator: torch.Generator | None = None, memory_format: torch.memory_format = torch.channels_last
) -> tuple[Tensor, Tensor]:
    """Random pictures of shape (batch, 3, 32, 32) and their labels."""
    x = torch.randn(batch, 3, 32, 32, generator=generator).contiguous(memory_format=memory_format)
    return x, torch.randint(0, 10, (batch,), generator=generator)


def nothing() -> None:
    pass


def timed_step(
    model: CodistillParallel,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    *,
    autocast: torch.dtype | None = torch.bfloat16,
    after_forward: Callable[[], None] = nothing,
) -> float:
    """Seconds of one update."""
    start = time.perf_counter()
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        logits = model(x)
    logits = logits.float()
    after_forward()
    loss = F.cross_entropy(logits, y) + model.codistill(x, logits).loss
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    optimizer.step()
    model.after_update()
    return time.perf_counter() - start
