"""What the encodings of predictions cost: bytes, and time as ratios to the dense divergence of the same run.

    OMP_NUM_THREADS=1 python -m benchmarks.topk

One sender and one receiver in one process, on random logits of a Transformer's mini-batch: 3584
tokens, a vocabulary of 32768. The encodings take turns, so that a machine whose speed drifts
treats all alike, and every time is divided by that of the dense divergence (of float32 logits,
forward and backward) of the same turn; printed are medians and quartiles as JSON. Takes about 2 minutes
with the defaults on one core, and 4 GiB of memory. Goal: top-k at most 1 MB a step and model; here it
is 0.92 MB, and dense float16 is 235 MB.

encode is the sender's work, for top-k the search for the k largest (search, alone) and their
log-probabilities; learn is the receiver's: decoding, the divergence and its gradient. A step has one
encode, and one learn a peer.
"""

import argparse
import json
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from codistill_ext import CodistillConfig, divergence
from codistill_ext.config import ENCODINGS
from codistill_ext.exchange.wire.encoding import Encoding, build_encoding
from codistill_ext.loss import Target
from codistill_ext.rows import as_rows


def seconds(device: torch.device, work: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    """How long a call takes, and what it returns; on a CPU its own time, whatever else runs there."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    start = clock()
    result = work(*args)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start, result


def learn(student_NC: Tensor, target: Target, kind: str) -> None:
    """The divergence and its gradient."""
    student_NC.grad = None
    torch.autograd.backward(divergence(student_NC, target, kind))


def decode_and_learn(encoding: Encoding, payload: list[Tensor], student_NC: Tensor, kind: str) -> None:
    learn(student_NC, encoding.decode(payload, student_NC.size(1)), kind)


def search(logits_NC: Tensor, k: int) -> None:
    logits_NC.topk(k, dim=1, sorted=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3584)
    parser.add_argument("--outputs", type=int, default=32768)
    parser.add_argument("--topk", type=int, default=64)
    parser.add_argument("--divergence", default="kl_teacher_student")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.manual_seed(0)
    teacher = 3 * torch.randn(args.rows, args.outputs, device=device)
    student = (3 * torch.randn(args.rows, args.outputs, device=device)).requires_grad_()
    encodings = {
        name: build_encoding(
            CodistillConfig(models=2, encoding=name, **({"topk": args.topk} if name == "topk" else {}))
        )
        for name in ENCODINGS
    }
    ratios: defaultdict[str, list[float]] = defaultdict(list)
    dense_s: list[float] = []
    for turn in range(args.turns + 1):
        times: dict[str, float] = {}
        dense, _ = seconds(device, learn, student, teacher, args.divergence)
        times["search"], _ = seconds(device, search, teacher, args.topk)
        for name, encoding in encodings.items():
            times[f"{name}/encode"], payload = seconds(device, encoding.encode, as_rows(teacher))
            times[f"{name}/learn"], _ = seconds(device, decode_and_learn, encoding, payload, student, args.divergence)
        if turn == 0:
            continue  # the first turn warms up
        dense_s.append(dense)
        for name, value in times.items():
            ratios[name].append(value / dense)
    medians = {name: statistics.median(values) for name, values in ratios.items()}
    result = {
        name: {
            "bytes": encoding.payload_bytes(args.rows, args.outputs),
            "encode": medians[f"{name}/encode"],
            "learn": medians[f"{name}/learn"],
            "encode_quartiles": statistics.quantiles(ratios[f"{name}/encode"], n=4),
            "learn_quartiles": statistics.quantiles(ratios[f"{name}/learn"], n=4),
        }
        for name, encoding in encodings.items()
    }
    print(
        json.dumps(
            {
                "args": vars(args),
                "threads": torch.get_num_threads(),
                "dense_seconds": statistics.median(dense_s),
                "search": medians["search"],
                "encodings": result,
                "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
