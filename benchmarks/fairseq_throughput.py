"""Words a second of fairseq with the plug-in: one model beside stock fairseq, and what coupling two models costs.

    OMP_NUM_THREADS=1 python -m benchmarks.fairseq_throughput --data DATA_BIN

First stock fairseq's criterion and ours with one model train alone, by turns, on the same batches in the same
order, so that every update has its counterpart: the ratio is the median over updates and rounds. Goal: 0.98.
Then two models in one job of two processes: not coupled (alpha 0), with checkpoints, with whole predictions and with
the top 64. Words are tokens of the target; a time reaches from the end of one update to the end of the next, so data
loading and logging are in it. Nothing is saved or validated. Printed as JSON. About 6 minutes with the defaults on 2
idle cores, on 38,232 pairs prepared with --vocab-size 8000.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.commands import ROOT, environment, torchrun

OURS = ["--user-dir", "codistill_ext", "--criterion", "codistill_label_smoothed_ce"]
ALONE = {"stock": ["--criterion", "label_smoothed_cross_entropy"], "one model": OURS}
_TWO = [*OURS, "--codistill-models", "2"]
TWO = {
    "not coupled": [*_TWO, "--codistill-alpha", "0"],
    "checkpoints": [*_TWO, "--codistill-exchange", "checkpoints", "--codistill-period", "10", "--codistill-lag", "1"],
    "predictions": _TWO,
    "predictions, top 64": [*_TWO, "--codistill-encoding", "topk", "--codistill-topk", "64"],
}
WARM_UP = 14  # updates that do not count: the first teachers come with update 11


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a data-bin, as translation.prepare makes it")
    parser.add_argument("--rounds", type=int, default=3, help="of stock and one model, by turns")
    parser.add_argument("--updates", type=int, default=44)
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--width", type=int, default=128, help="of the Transformer, which has 3 layers a side")
    args = parser.parse_args()
    if args.updates <= WARM_UP:
        parser.error(f"--updates must be more than {WARM_UP}, which do not count")
    with tempfile.TemporaryDirectory() as directory:
        result = {"one model": one_model(args, Path(directory)), "two models": two_models(args, Path(directory))}
    print(json.dumps(result, indent=2))


def one_model(args: argparse.Namespace, directory: Path) -> dict[str, Any]:
    ratios, words_a_second = [], {name: [] for name in ALONE}
    for turn in range(args.rounds):
        order = list(ALONE) if turn % 2 == 0 else list(reversed(ALONE))
        found = {name: train(args, ALONE[name], directory / f"{turn} {name}", 1)[0] for name in order}
        for name, one in found.items():
            words_a_second[name].append(sum(one["words"]) / sum(one["seconds"]))
        stock, ours = found["stock"], found["one model"]
        assert stock["words"] == ours["words"], "the batches are the same"
        ratios += [first / second for first, second in zip(stock["seconds"], ours["seconds"], strict=True)]
    return {
        "words_a_second": {name: [round(value) for value in values] for name, values in words_a_second.items()},
        "ours_to_stock": round(statistics.median(ratios), 4),
        "quartiles_of_updates": [round(value, 4) for value in statistics.quantiles(ratios, n=4)],
        "ours_to_stock_of_totals": round(sum(words_a_second["one model"]) / sum(words_a_second["stock"]), 4),
        "peak_mb": {name: found[name]["peak_mb"] for name in found},
    }


def two_models(args: argparse.Namespace, directory: Path) -> dict[str, Any]:
    result = {}
    for name, options in TWO.items():
        models = train(args, options, directory / name, 2)
        summary = json.loads((directory / name / "run/summary.json").read_text())
        traffic = summary["models"][0]["traffic"]
        sent = sum(count for kind, count in traffic.items() if kind.startswith("sent/"))
        result[name] = {
            "words_a_second_a_model": [round(sum(one["words"]) / sum(one["seconds"])) for one in models],
            "median_update_s": [round(statistics.median(one["seconds"]), 4) for one in models],
            "peak_mb": [one["peak_mb"] for one in models],
            "bytes_sent_by_model_0": sent,
            "bytes_an_update": round(sent / summary["models"][0]["updates"]),
        }
    return result


def train(args: argparse.Namespace, options: list[str], directory: Path, processes: int) -> list[dict[str, Any]]:
    """Train; what each process has measured."""
    directory.mkdir()
    given = command(args, options, directory, processes)
    done = subprocess.run(given, env=environment(), cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(given)} failed:\n{done.stderr[-3000:]}")
    return [json.loads((directory / f"rank{rank}.json").read_text()) for rank in range(processes)]


def command(args: argparse.Namespace, options: list[str], directory: Path, processes: int) -> list[str]:
    """Trains, and leaves what a process has measured in ``directory``."""
    width, inner = str(args.width), str(4 * args.width)
    model = ["--cpu", "--arch", "transformer", "--share-all-embeddings", "--dropout", "0.1", "--label-smoothing", "0.1"]
    for side in "encoder", "decoder":
        model += [f"--{side}-layers", "3", f"--{side}-embed-dim", width, f"--{side}-ffn-embed-dim", inner]
        model += [f"--{side}-attention-heads", "4"]
    training = ["--optimizer", "adam", "--lr", "5e-4", "--lr-scheduler", "inverse_sqrt", "--warmup-updates", "100"]
    training += ["--max-tokens", str(args.max_tokens), "--max-update", str(args.updates), "--num-workers", "0"]
    training += ["--disable-validation", "--no-save", "--no-progress-bar", "--log-interval", "10", "--seed", "1"]
    launcher = torchrun(processes) if processes > 1 else [sys.executable]
    measured = ["-m", "benchmarks.fairseq_throughput", "--measured", str(directory), args.data]
    return [*launcher, *measured, *model, *training, *options, "--save-dir", str(directory / "run")]


def measured() -> None:
    """fairseq-train with a clock at the end of each update."""
    from fairseq.tasks import FairseqTask
    from fairseq_cli import train as fairseq_train

    directory = Path(sys.argv[2])
    sys.argv[1:3] = []
    ends: list[float] = []
    words: list[int] = []
    train_step, validate_and_save = FairseqTask.train_step, fairseq_train.validate_and_save

    def counted(self: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        words.append(sample["ntokens"])
        return train_step(self, sample, *args, **kwargs)

    def timed(*args: Any) -> Any:  # fairseq's loop calls it after each update
        ends.append(time.perf_counter())
        return validate_and_save(*args)

    FairseqTask.train_step, fairseq_train.validate_and_save = counted, timed
    fairseq_train.cli_main()
    seconds = [after - before for before, after in zip(ends[WARM_UP - 1 :], ends[WARM_UP:], strict=False)]
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    result = {"seconds": seconds, "words": words[WARM_UP:], "peak_mb": peak_mb}
    (directory / f"rank{os.environ.get('RANK', 0)}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    measured() if sys.argv[1:2] == ["--measured"] else main()
