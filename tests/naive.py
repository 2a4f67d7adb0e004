"""The paper's algorithm in one process, written as directly as possible: the second implementation."""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codistill_ext.config import CodistillConfig

Batches = Callable[[int, int, int], tuple[Tensor, Tensor]]  # (update, model, rank) -> x, y


class Net(nn.Module):
    """Small, but with everything that can go wrong: BatchNorm's buffers, tied parameters."""

    def __init__(self, width: int = 12, outputs: int = 5) -> None:
        super().__init__()
        self.first = nn.Linear(8, width)
        self.norm = nn.BatchNorm1d(width)
        self.second = nn.Linear(width, width)
        self.third = nn.Linear(width, width)
        self.third.weight = self.second.weight
        self.last = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.first(x)))
        return self.last(torch.tanh(self.third(torch.tanh(self.second(h)))))


def naive_divergence(student: Tensor, teacher: Tensor, config: CodistillConfig) -> Tensor:
    """Mean over the rows, one row and one output at a time."""
    if config.divergence == "mse":
        return ((student - teacher) ** 2).sum() / student.numel()
    p = torch.softmax(teacher / config.temperature, dim=1)
    q = torch.softmax(student / config.temperature, dim=1)
    total = torch.zeros(())
    for row in range(len(student)):
        pairs = [(p[row, output], q[row, output]) for output in range(student.size(1))]
        if config.encoding == "topk":
            pairs = _bins(pairs, config.topk)
        for pi, qi in pairs:
            if config.divergence == "kl_teacher_student":
                total = total + pi * (pi / qi).log()
            elif config.divergence == "kl_student_teacher":
                total = total + qi * (qi / pi).log()
            else:
                total = total - pi * qi.log()
    return config.temperature**2 * total / len(student)


def _bins(pairs: list[tuple[Tensor, Tensor]], k: int) -> list[tuple[Tensor, Tensor]]:
    """Of (teacher's, student's) probabilities of the outputs of one row: those of the k + 1 bins."""
    pairs = sorted(pairs, key=lambda pair: pair[0].item(), reverse=True)
    bins = [(p.log().half().float().exp(), q) for p, q in pairs[:k]]
    if pairs[k:]:
        mass = max(1 - sum(p.item() for p, _ in bins), torch.finfo(torch.float32).eps)
        bins.append((torch.tensor(mass), torch.stack([q for _, q in pairs[k:]]).sum()))
    return bins


def train_naively(
    build: Callable[[int], nn.Module],
    batches: Batches,
    config: CodistillConfig,
    *,
    ranks: int,
    updates: int,
    lr: float,
) -> list[dict[str, Tensor]]:
    """Train ``config.models`` models of ``ranks`` ranks each; their states after ``updates``."""
    models = [build(index) for index in range(config.models)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9) for model in models]
    teachers: list[nn.Module | None] = [None] * config.models
    flying: tuple[int, list[nn.Module]] | None = None
    for update in range(updates):
        data = [[batches(update, index, rank) for rank in range(ranks)] for index in range(config.models)]
        outputs = []
        for index, model in enumerate(models):
            # Every rank has its own BatchNorm statistics; only those of rank 0 are kept.
            others = [_forward_apart(model, x) for x, _ in data[index][1:]]
            outputs.append([model(data[index][0][0]), *others])
        losses = [_loss(index, data[index], outputs, teachers, config, update) for index in range(config.models)]
        for optimizer, loss in zip(optimizers, losses, strict=True):
            optimizer.zero_grad()
            loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        done = update + 1
        if config.exchange == "checkpoints":
            if flying is not None and flying[0] == done:
                teachers, flying = list(flying[1]), None
            if done % config.period == 0:
                flying = (done + config.swap_delay, [copy.deepcopy(model).eval() for model in models])
            if flying is not None and flying[0] == done:
                teachers, flying = list(flying[1]), None
    return [model.state_dict() for model in models]


def _forward_apart(model: nn.Module, x: Tensor) -> Tensor:
    buffers = {name: tensor.clone() for name, tensor in model.named_buffers()}
    return torch.func.functional_call(model, buffers, x)


def _loss(
    index: int,
    data: list[tuple[Tensor, Tensor]],
    outputs: list[list[Tensor]],
    teachers: list[nn.Module | None],
    config: CodistillConfig,
    update: int,
) -> Tensor:
    total = torch.zeros(())
    for rank, (x, y) in enumerate(data):
        logits = outputs[index][rank]
        loss = F.cross_entropy(logits, y)
        targets = []
        for peer in config.peers[index]:
            teacher = teachers[peer]
            if config.exchange == "predictions":
                sent = outputs[peer][rank].detach()
                targets.append(sent.half().float() if config.encoding == "half" else sent)
            elif teacher is not None:
                targets.append(teacher(x).detach())
        if targets and update >= config.burn_in:
            if config.target == "mean":
                mean = sum(torch.softmax(target, dim=1) for target in targets) / len(targets)
                targets = [mean.log()]
            loss = loss + config.alpha * sum(naive_divergence(logits, t, config) for t in targets) / len(targets)
        total = total + loss / len(data)
    return total
