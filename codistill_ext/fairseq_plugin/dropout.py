"""(fairseq) ``--codistill-dropout``: fairseq's ``--dropout`` as a schedule over the run."""

from typing import Any

from fairseq.modules import FairseqDropout
from torch import nn

from codistill_ext.errors import Mistake

_NAMES = ("dropout_module", "dropout_in_module", "dropout_out_module")


def dropouts_of(model: nn.Module) -> list[FairseqDropout]:
    """What ``--dropout`` sets: not the dropout of attention weights or of activations, which have options of their own.

    Raises:
        Mistake: the model has none that can be changed.
    """
    owners = (module for module in model.modules() if "Attention" not in type(module).__name__)
    found: list[Any] = [getattr(owner, name, None) for owner in owners for name in _NAMES]
    found = [module for module in found if isinstance(module, FairseqDropout)]
    if not found:
        raise Mistake(
            f"--codistill-dropout changes fairseq's dropout modules, of which {type(model).__name__} has none: "
            f"leave it out, or take a transformer, lightconv, fconv or lstm"
        )
    return found


def set_dropout(model: nn.Module, share: float) -> None:
    """Let the next forward passes in training drop this share."""
    for module in dropouts_of(model):
        module.p = share
