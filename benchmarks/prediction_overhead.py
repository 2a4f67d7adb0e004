"""What exchanging predictions costs a training step, as a ratio from one run.

    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 benchmarks/prediction_overhead.py

Two models train side by side on the same random pictures, in blocks of steps by turns with the
exchange and without it, so that a machine whose speed drifts treats both alike. Printed: the ratio
of the medians of all steps, and the quartiles of the ratios of neighbouring blocks. Takes about 5 minutes
with the defaults on 2 cores. Goal: a ratio of at most 1.05.
"""

import argparse
import json
import statistics
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F

from codistill_ext import CodistillConfig, CodistillParallel, ModelGroups, model_seed
from vision.models import build_model


def steps(model: CodistillParallel, optimizer: torch.optim.Optimizer, batch: int, count: int, seed: int) -> list[float]:
    """Seconds of each of ``count`` training steps; all ranks begin together."""
    generator = torch.Generator().manual_seed(seed)
    data = [
        (
            torch.randn(batch, 3, 32, 32, generator=generator).contiguous(memory_format=torch.channels_last),
            torch.randint(0, 10, (batch,), generator=generator),
        )
        for _ in range(count)
    ]
    dist.barrier()
    seconds = []
    for x, y in data:
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x)
        logits = logits.float()
        loss = F.cross_entropy(logits, y) + model.codistill(x, logits).loss
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        model.after_update()
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=20, help="pairs of blocks")
    parser.add_argument("--steps", type=int, default=20, help="a block")
    args = parser.parse_args()
    dist.init_process_group("gloo")
    config = CodistillConfig(models=dist.get_world_size())
    groups = ModelGroups.create(config)
    torch.manual_seed(model_seed(0, groups.model_index))
    module = build_model(args.model, num_classes=10, image_sizes=(32, 32)).to(memory_format=torch.channels_last)
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    apart = CodistillParallel(module, groups, CodistillConfig(models=config.models, alpha=0.0))
    coupled = CodistillParallel(module, groups, config)
    for model in apart, coupled:
        steps(model, optimizer, args.batch_size, 5, seed=0)
    times: dict[str, list[list[float]]] = {"apart": [], "coupled": []}
    for block in range(args.blocks):
        times["apart"].append(steps(apart, optimizer, args.batch_size, args.steps, seed=block))
        times["coupled"].append(steps(coupled, optimizer, args.batch_size, args.steps, seed=block))
    ratios = [sum(c) / sum(a) for a, c in zip(times["apart"], times["coupled"], strict=True)]
    result = {
        "model": groups.model_index,
        "ms_apart": 1e3 * statistics.median(t for block in times["apart"] for t in block),
        "ms_coupled": 1e3 * statistics.median(t for block in times["coupled"] for t in block),
        "block_ratio_quartiles": statistics.quantiles(ratios, n=4),
    }
    result["ratio_of_medians"] = result["ms_coupled"] / result["ms_apart"]
    everyone: list[dict[str, object]] = [{}] * groups.world_size
    dist.all_gather_object(everyone, result)
    if groups.rank == 0:
        print(json.dumps({"args": vars(args), "models": everyone}, indent=2))
    coupled.leave()
    coupled.close()


if __name__ == "__main__":
    main()
