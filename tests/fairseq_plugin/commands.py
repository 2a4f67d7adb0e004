"""fairseq's commands, with small models."""

from pathlib import Path

import torch

from tests.commands import run, script, torchrun

CRITERION = ["--criterion", "codistill_label_smoothed_ce"]
STOCK = ["--criterion", "label_smoothed_cross_entropy"]

_COMMON = [
    *("--cpu", "--num-workers", "0", "--no-progress-bar", "--dropout", "0.1"),
    *("--optimizer", "adam", "--lr", "1e-3", "--lr-scheduler", "inverse_sqrt", "--warmup-updates", "10"),
    *("--label-smoothing", "0.1", "--max-tokens", "400", "--log-interval", "2", "--seed", "3"),
]
_DECODER = [
    *("--decoder-embed-dim", "16", "--decoder-ffn-embed-dim", "32", "--decoder-layers", "1"),
    *("--decoder-attention-heads", "2"),
]
SMALL = [
    *_COMMON,
    *("--arch", "transformer", "--share-all-embeddings", *_DECODER),
    *("--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "32", "--encoder-layers", "1"),
    *("--encoder-attention-heads", "2"),
]
SMALL_LM = [*_COMMON, "--task", "language_modeling", "--arch", "transformer_lm", "--tokens-per-sample", "40", *_DECODER]


def train(
    data: Path | str, save_dir: Path, *options: str, processes: int = 1, fails: bool = False, small: list[str] = SMALL
) -> str:
    """``[torchrun] fairseq-train DATA --user-dir codistill_ext ...``; the output."""
    launcher = torchrun(processes) if processes > 1 else []
    command = [*launcher, script("fairseq-train"), str(data), "--user-dir", "codistill_ext", *small]
    return run([*command, "--save-dir", str(save_dir), *options], fails=fails)


def weights(path: Path) -> dict[str, torch.Tensor]:
    """The model in a checkpoint, loaded without unpickling classes."""
    with torch.serialization.safe_globals([__import__("argparse").Namespace]):
        return torch.load(path, weights_only=True)["model"]


def same_bits(first: Path, second: Path) -> bool:
    a, b = weights(first), weights(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
