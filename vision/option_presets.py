"""Options by the dozen: ``--preset NAME`` sets them, and a flag beside it wins."""

from __future__ import annotations

from collections.abc import Mapping

# As they are typed. Goyal et al., sections 2.2 and 5.1: linear scaling of 0.1 for 256 images, above them a warm-up
# from 0.1; 32 images a worker; the stride in the 3x3, the last gamma 0, the classifier from N(0, 0.01); Nesterov's
# momentum; no decay of BatchNorm's parameters.
PRESETS: Mapping[str, Mapping[str, str]] = {
    "goyal": {
        "batch-size": "32",
        "train-crop-size": "224",
        "val-resize-size": "256",
        "val-crop-size": "224",
        "stride-in": "3x3",
        "init": "goyal",
        "opt": "sgd_nesterov",
        "momentum": "0.9",
        "weight-decay": "1e-4",
        "norm-weight-decay": "0",
        "label-smoothing": "0",
        "epochs": "90",
        "lr": "0.1",
        "lr-scaling": "linear",
        "lr-scheduler": "multisteplr",
        "lr-milestones": "30 60 80",
        "lr-gamma": "0.1",
        "lr-warmup-epochs": "5",
    }
}


def describe_preset(name: str, given: set[str], lr_scheduler: str) -> str:
    """What a preset sets, for the user to see."""
    return f"preset {name}: {' '.join(preset_flags(name, given, lr_scheduler))}"


def preset_flags(name: str, given: set[str], lr_scheduler: str) -> list[str]:
    """Of a preset's options those that the command line does not set, as flags, and that have an effect.

    Args:
        given: the options that the command line has itself.
        lr_scheduler: the run's; a cosine has no use for milestones.
    """
    left_out = given | (set() if lr_scheduler == PRESETS[name]["lr-scheduler"] else {"lr_milestones", "lr_gamma"})
    flags: list[str] = []
    for option, value in PRESETS[name].items():
        if option.replace("-", "_") not in left_out:
            flags += [f"--{option}", *value.split()]
    return flags
