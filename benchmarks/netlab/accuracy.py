"""What runs on each host for time to accuracy: CIFAR-10 to the end in one way, then the test pictures.

Started by ``torchrun`` on the hosts of a lab, with a ``Training`` in its argument. All ways have the same updates,
pictures a host and update, weight decay and cosine schedule; the learning rate is linear in the number of pictures that
a model's gradients, or weights, are averaged over (Goyal et al.).
"""

import dataclasses
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.netlab.hosts import interface_bytes
from benchmarks.netlab.measure import build
from benchmarks.netlab.ways import Codistilled, Spec
from vision.cifar10 import load_cifar10
from vision.models import build_model
from vision.presets import Normalise

_LR_A_PICTURE = 0.1 / 128
_WARM_UP = 0.05  # of the updates
_PAD = 4  # pixels, of the random crops
_TEST_BATCH = 500


@dataclass(frozen=True, kw_only=True)
class Training:
    """One run.

    Attributes:
        way: of ``ways.py`` or ``others.py``.
        batch: pictures a host and update.
    """

    way: str
    hosts: int
    seed: int
    updates: int
    batch: int = 64
    model: str = "resnet8_stride2"
    weight_decay: float = 5e-4
    result: str = ""

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    def spec(self) -> Spec:
        def make() -> nn.Module:
            return _InBfloat16(build_model(self.model, num_classes=10, image_sizes=(32, 32)))

        return Spec(make, seed=self.seed, warm_up=round(0.1 * self.updates))

    def lr(self, update: int, pictures: int) -> float:
        """At an update, for gradients over so many pictures."""
        done, warm_up = update / self.updates, max(1.0, _WARM_UP * self.updates)
        return _LR_A_PICTURE * pictures * min(1.0, (update + 1) / warm_up) * (1 + math.cos(math.pi * done)) / 2


class _InBfloat16(nn.Module):
    """Under autocast and channels last, a third faster on CPU; float32 weights, gradients and logits."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits: Tensor = self.inner(x.contiguous(memory_format=torch.channels_last))
        return logits.float()


def main() -> None:
    training = Training(**json.loads(sys.argv[1]))
    dist.init_process_group("gloo")
    found = train(training)
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, found)
    if dist.get_rank() == 0:
        Path(training.result).write_text(json.dumps(summary(training, everyone)))
    dist.barrier()
    dist.destroy_process_group()


def train(training: Training) -> dict[str, Any]:
    data, normalise = load_cifar10(), Normalise("cifar10", torch.device("cpu"))
    way = build(training.way, training.spec(), 1)
    rank, hosts = dist.get_rank(), dist.get_world_size()
    coupled = way.model if isinstance(way, Codistilled) else None
    averaged = coupled.groups.data_size if coupled else 1 if training.way == "alone" else hosts
    reader = coupled.groups.data_rank if coupled and coupled.config.coordinated else rank
    before, start = interface_bytes(), time.perf_counter()
    for update in range(training.updates):
        for group in way.optimizer.param_groups:
            group["lr"] = training.lr(update, training.batch * averaged)
            group["weight_decay"] = training.weight_decay
        x, y = draw(data, training, update, reader)
        way.step(normalise(x), y)
    seconds = time.perf_counter() - start
    dist.barrier()
    moved = [after - then for after, then in zip(interface_bytes(), before, strict=True)]
    top1 = evaluate(way.plain, data, normalise)
    way.close()
    model = coupled.groups.model_index if coupled else 0
    return {"model": model, "top1": top1, "seconds": seconds, "sent": moved[0], "received": moved[1]}


def draw(data: dict[str, Tensor], training: Training, update: int, reader: int) -> tuple[Tensor, Tensor]:
    """A host's pictures of an update, cropped and flipped at random."""
    generator = torch.Generator().manual_seed((training.seed * 1_000_003 + update) * 1009 + reader)
    chosen = torch.randint(0, len(data["train_labels"]), (training.batch,), generator=generator)
    pictures = torch.nn.functional.pad(data["train_images"][chosen], [_PAD] * 4)
    tops, lefts = torch.randint(0, 2 * _PAD + 1, (2, training.batch), generator=generator).tolist()
    flips = (torch.rand(training.batch, generator=generator) < 0.5).tolist()
    crops = [
        picture[:, top : top + 32, left : left + 32].flip(2) if flip else picture[:, top : top + 32, left : left + 32]
        for picture, top, left, flip in zip(pictures, tops, lefts, flips, strict=True)
    ]
    return torch.stack(crops), data["train_labels"][chosen].long()


@torch.inference_mode()
def evaluate(module: nn.Module, data: dict[str, Tensor], normalise: Normalise) -> float:
    """Top-1 of the test pictures, in per cent."""
    module.eval()
    batches = zip(data["test_images"].split(_TEST_BATCH), data["test_labels"].split(_TEST_BATCH), strict=True)
    right = sum(int((module(normalise(x)).argmax(dim=1) == y).sum()) for x, y in batches)
    return 100 * right / len(data["test_labels"])


def summary(training: Training, everyone: list[dict[str, Any]]) -> dict[str, Any]:
    """Model 0's accuracy is the one that the paper would report; the mean is over models."""
    models = {found["model"]: found["top1"] for found in reversed(everyone)}  # of each model's first rank
    return {
        "training": dataclasses.asdict(dataclasses.replace(training, result="")),
        "top1": models[0],
        "mean_top1": sum(models.values()) / len(models),
        "seconds": max(found["seconds"] for found in everyone),
        "sent_mb": max(found["sent"] for found in everyone) / 1e6,
    }


if __name__ == "__main__":
    main()
