"""Perplexity, a piece, of each model of a job and of their ensemble."""

import math
import statistics
from typing import Any

import torch
from torch import Tensor

from codistill_ext import CodistillParallel, ModelGroups


@torch.no_grad()
def _own_logp(model: CodistillParallel, blocks: Tensor, batch: int, device: torch.device) -> Tensor:
    """The log-probability of each piece that comes next in this rank's share, float64 on the CPU.

    All ranks of a model run as many batches, because a sharded model gathers its weights in each.
    """
    groups, training = model.groups, model.training
    model.eval()
    places = torch.arange(-(-len(blocks) // groups.data_size)) * groups.data_size + groups.data_rank
    found = []
    for part in blocks[places.clamp(max=len(blocks) - 1)].split(batch):
        part = part.to(device)
        logits = model(part[:, :-1]).double()
        found.append(logits.log_softmax(-1).gather(-1, part[:, 1:, None]).squeeze(-1).cpu())
    model.train(training)
    return torch.cat(found)[places < len(blocks)]


def _by_model(model: CodistillParallel, blocks: Tensor, batch: int, device: torch.device) -> dict[int, Tensor]:
    """Of each model of the job the log-probabilities of all pieces, in the same order. Collective over the job."""
    groups: ModelGroups = model.groups
    mine = (groups.model_index, groups.data_rank, _own_logp(model, blocks, batch, device))
    shares: dict[int, list[Tensor]] = {}
    for index, _, logp in sorted(groups.gather(mine), key=lambda share: share[:2]):
        shares.setdefault(index, []).append(logp)
    return {index: torch.cat(parts).flatten() for index, parts in shares.items()}


def evaluate(
    model: CodistillParallel, blocks: Tensor, batch: int, device: torch.device, name: str
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Every rank of the job must call it.

    Returns:
        of each model, and together: ``NAME_loss``, in nats a piece, and ``NAME_perplexity``. The ensemble predicts
        by the mean of the models' probabilities.
    """
    logp = _by_model(model, blocks, batch, device)
    losses = {index: -values.mean().item() for index, values in logp.items()}
    models = [
        {"model": index, f"{name}_loss": loss, f"{name}_perplexity": math.exp(loss)} for index, loss in losses.items()
    ]
    stacked = torch.stack([*logp.values()])
    ensemble = -(stacked.logsumexp(0) - math.log(len(logp))).mean().item()
    together = {
        f"mean_{name}_perplexity": statistics.fmean(math.exp(loss) for loss in losses.values()),
        f"ensemble_{name}_loss": ensemble,
        f"ensemble_{name}_perplexity": math.exp(ensemble),
    }
    return models, together
