"""Peak memory and time of the divergence at a large vocabulary, each way in a fresh process.

    OMP_NUM_THREADS=1 python -m benchmarks.vocabulary
    OMP_NUM_THREADS=1 python -m benchmarks.vocabulary --rows 1024 --outputs 100000

The divergence and its gradient, of given logits or of given hidden states and output matrices:

    plain           log_softmax and kl_div of all logits in float32 by autograd, as one would write it: before
    blocked         the same divergence by ``divergence``: after
    topk plain      the teacher's top k and the rest as one bin, by autograd on all logits, as one would write it
    topk            the same by ``divergence``
    layer plain     as plain, of the logits that two linear layers have just made
    layer blocked   as blocked, of the same
    hidden          the same divergence by ``LinearLogits``, whose logits are never whole
    hidden topk     of the teacher's top k, searched block by block in what its hidden states give

Memory is the most that the process held (on CUDA that torch allocated) beyond its inputs, which are two tensors of
logits in the first four ways; it is also given in tensors of logits. The gradient is one of them but in the last two.
Time is the process's own on a CPU; the median of --turns after one to warm up. Prints JSON. With the defaults about
4 minutes on one free core and 4 GiB.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from codistill_ext import LinearLogits, divergence
from codistill_ext.rows import as_rows
from codistill_ext.topk import topk_of

OF_LOGITS = ("plain", "blocked", "topk plain", "topk")
WAYS = (*OF_LOGITS, "layer plain", "layer blocked", "hidden", "hidden topk")
KIND = "kl_teacher_student"


def plain(student_NC: Tensor, teacher_NC: Tensor) -> Tensor:
    student_logp, teacher_logp = (F.log_softmax(logits.float(), dim=-1) for logits in (student_NC, teacher_NC))
    return F.kl_div(student_logp, teacher_logp, reduction="none", log_target=True).sum(dim=-1).mean()


def topk_plain(student_NC: Tensor, teacher_NC: Tensor, k: int) -> Tensor:
    teacher_logp, index_NK = F.log_softmax(teacher_NC.float(), dim=-1).topk(k)
    teacher_logp = torch.cat([teacher_logp, torch.log1p(-teacher_logp.exp().sum(dim=-1, keepdim=True))], dim=-1)
    logits_NC = student_NC.float()
    rest_N1 = logits_NC.scatter(1, index_NK, -torch.inf).logsumexp(dim=-1, keepdim=True)
    student_logp = F.log_softmax(torch.cat([logits_NC.gather(1, index_NK), rest_N1], dim=-1), dim=-1)
    return F.kl_div(student_logp, teacher_logp, reduction="none", log_target=True).sum(dim=-1).mean()


def of_logits(way: str, student_NC: Tensor, teacher_NC: Tensor, k: int) -> Tensor:
    if way == "plain":
        return plain(student_NC, teacher_NC)
    if way == "topk plain":
        return topk_plain(student_NC, teacher_NC, k)
    target = topk_of(as_rows(teacher_NC), k, 1.0) if way == "topk" else teacher_NC
    return divergence(student_NC, target, KIND)


def of_hidden(way: str, student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], k: int) -> Tensor:
    if way.startswith("layer"):
        return of_logits(way.removeprefix("layer "), F.linear(*student), F.linear(*teacher), k)
    theirs = LinearLogits(*teacher)
    return divergence(LinearLogits(*student), topk_of(theirs, k, 1.0) if way == "hidden topk" else theirs, KIND)


def work_of(way: str, args: argparse.Namespace) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """The divergence, and what its gradient is for."""
    torch.manual_seed(0)
    options = {"device": args.device, "dtype": getattr(torch, args.dtype)}
    if way in OF_LOGITS:
        student, teacher = (torch.randn(args.rows, args.outputs, **options).mul_(3) for _ in range(2))
        student.requires_grad_()
        return lambda: of_logits(way, student, teacher, args.topk), [student]
    hidden, taught = (torch.randn(args.rows, args.hidden, **options) for _ in range(2))
    weight, theirs = (torch.randn(args.outputs, args.hidden, **options).mul_(3 / args.hidden**0.5) for _ in range(2))
    wanting = [hidden.requires_grad_(), weight.requires_grad_()]
    return lambda: of_hidden(way, (hidden, weight), (taught, theirs), args.topk), wanting


class Peak:
    """The most memory held while it is open, in bytes above what was held before."""

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")

    def __enter__(self) -> "Peak":
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
            self._before = _status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes = (torch.cuda.max_memory_allocated() if self._cuda else _status("VmHWM")) - self._before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name + ":"))) * 1024


def measure(way: str, args: argparse.Namespace) -> dict[str, float]:
    clock = time.perf_counter if args.device.startswith("cuda") else time.process_time
    compute, wanting = work_of(way, args)
    times, most = [], 0
    for _ in range(args.turns + 1):
        for tensor in wanting:
            tensor.grad = None
        with Peak(args.device) as peak:
            start = clock()
            torch.autograd.backward(compute())
            if args.device.startswith("cuda"):
                torch.cuda.synchronize()
            times.append(clock() - start)
        most = max(most, peak.bytes)
    return {"peak_bytes": most, "seconds": statistics.median(times[1:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3584)
    parser.add_argument("--outputs", type=int, default=32768)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--topk", type=int, default=64)
    parser.add_argument("--dtype", default="float32", help="of logits, hidden states and matrices")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--way", choices=WAYS, help="one alone, in this process")
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measure(args.way, args)))
        return
    ways = {}
    for way in WAYS:
        command = [sys.executable, "-m", "benchmarks.vocabulary", *sys.argv[1:], "--way", way]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        ways[way] = json.loads(done.stdout)
    logits = args.rows * args.outputs * getattr(torch, args.dtype).itemsize
    for way, figures in ways.items():
        before = ways["plain" if way in OF_LOGITS else "layer plain"]
        figures["peak_in_logits"] = round(figures["peak_bytes"] / logits, 2)
        figures["time_to_plain"] = round(figures["seconds"] / before["seconds"], 2)
    print(
        json.dumps(
            {"args": vars(args), "threads": torch.get_num_threads(), "logits_bytes": logits, "ways": ways}, indent=2
        )
    )


if __name__ == "__main__":
    main()
