"""What exchanging predictions costs a training step, as ratios from one run.

    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 -m benchmarks.prediction_overhead

Two models train side by side on the same random pictures, in blocks of steps, by turns in three ways: apart; apart,
but meeting after each forward pass at a barrier, as all-reduce would make them meet; and coupled. The order
of the ways changes from round to round, so that a machine whose speed drifts treats all alike. Printed:
the ratios of the median steps, and the quartiles of the ratios of blocks in the same round. Coupled to apart is
what a user pays (goal: at most 1.05), coupled to meeting is the exchange itself, without waiting
for the slower model. Takes about 6 minutes with the defaults on 2 cores.
"""

import argparse
import json
import statistics

import torch
import torch.distributed as dist

from benchmarks.training import build, build_optimizer, draw, nothing, timed_step
from codistill_ext import CodistillConfig, CodistillParallel, ModelGroups

WAYS = ("apart", "meeting", "coupled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=20, help="blocks of each way")
    parser.add_argument("--steps", type=int, default=20, help="a block")
    args = parser.parse_args()
    dist.init_process_group("gloo")
    config = CodistillConfig(models=dist.get_world_size())
    groups = ModelGroups.create(config)
    module = build(args.model, groups.model_index)
    optimizer = build_optimizer(module)
    alone = CodistillParallel(module, groups, CodistillConfig(models=config.models, alpha=0.0))
    coupled = CodistillParallel(module, groups, config)

    def block(way: str, seed: int) -> list[float]:
        generator = torch.Generator().manual_seed(seed)
        data = [draw(args.batch_size, generator) for _ in range(args.steps)]
        model = coupled if way == "coupled" else alone
        meet = dist.barrier if way == "meeting" else nothing
        dist.barrier()
        return [timed_step(model, optimizer, x, y, after_forward=meet) for x, y in data]

    seconds: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for turn in range(-1, args.rounds):  # the first round warms up
        for place in range(len(WAYS)):
            way = WAYS[(turn + place) % len(WAYS)]
            taken = block(way, turn + 1)
            if turn >= 0:
                seconds[way].append(taken)
    medians = {way: statistics.median(step for taken in blocks for step in taken) for way, blocks in seconds.items()}
    mine = {
        "model": groups.model_index,
        "median_ms": {way: round(1e3 * median, 2) for way, median in medians.items()},
        "coupled_to_apart": compare(seconds, medians, "coupled", "apart"),
        "coupled_to_meeting": compare(seconds, medians, "coupled", "meeting"),
        "meeting_to_apart": compare(seconds, medians, "meeting", "apart"),
    }
    everyone = groups.gather(mine)
    if groups.rank == 0:
        print(json.dumps({"args": vars(args), "models": everyone}, indent=2))
    coupled.close()


def compare(
    seconds: dict[str, list[list[float]]], medians: dict[str, float], way: str, other: str
) -> dict[str, float | list[float]]:
    ratios = [sum(a) / sum(b) for a, b in zip(seconds[way], seconds[other], strict=True)]
    return {
        "of_medians": round(medians[way] / medians[other], 3),
        "quartiles_of_blocks": [round(quartile, 3) for quartile in statistics.quantiles(ratios, n=4)],
    }


if __name__ == "__main__":
    main()
