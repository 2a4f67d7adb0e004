"""The codistillation term of a transformers model, normalised as Trainer does the task loss."""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from codistill_ext.integrations.coupling import HostedCoupling

IGNORED = -100  # the label that transformers leaves out of the loss


def term_and_share(
    trainer: Any, coupling: HostedCoupling, inputs: Mapping[str, Any], outputs: Any, num_items: Any
) -> tuple[Tensor, float]:
    """alpha times the divergence, to be added to what ``Trainer.compute_loss`` returns.

    Args:
        inputs: of the model, with the labels; outputs: what it returned for them.
        num_items: labels that count in the whole update, over this model's ranks if it averages over them; or None.

    Returns:
        the term, and which share of an update's loss Trainer makes of one mini-batch's.
    """
    given = teacher_inputs(inputs, trainer.model)
    mask = trainer.counted_positions(inputs, outputs)
    whole = is_of_update(trainer, num_items)
    each = 1.0 / trainer.current_gradient_accumulation_steps
    if not whole or num_items is None:
        loss = coupling.codistill(given, logits_of(outputs), mask=mask).loss
        return (loss * each, 1.0) if whole else (loss, each)
    loss = coupling.codistill(given, logits_of(outputs), mask=mask, reduction="sum").loss / num_items
    ranks = trainer.accelerator.num_processes if trainer.args.average_tokens_across_devices else 1
    return loss * ranks, 1.0


def is_of_update(trainer: Any, num_items: Any) -> bool:
    """Whether Trainer takes a loss as part of the whole update's, and does not divide it by the micro-batches."""
    told: bool | None = trainer.loss_is_scaled_for_ga
    if told is not None:
        return told
    return (trainer.model_accepts_loss_kwargs and num_items is not None) or trainer.compute_loss_func is not None


def logits_of(outputs: Any) -> Tensor:
    """The logits that a model returned, also of a teacher.

    Raises:
        ValueError: it returned none.
    """
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else None
    if not isinstance(logits, Tensor):
        raise ValueError(
            "the model returned no logits, which are what models exchange: let it return a dict with 'logits' "
            "(return_dict=True, use_liger_kernel=False)"
        )
    return logits


def teacher_inputs(inputs: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """Without labels, from which a teacher would compute a loss; but some decoders are fed from them."""
    is_fed = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    fed_from_labels = is_fed and "decoder_input_ids" not in inputs
    return {name: value for name, value in inputs.items() if fed_from_labels or name not in ("labels", "shift_labels")}


def shifts_labels(trainer: Any) -> bool:
    """Whether the task loss compares position t with label t+1, as a causal language model's does."""
    names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()  # Trainer knows some, such as GPT2LMHeadModel, by these alone
    return bool(trainer._loss_shifts_labels) or type(trainer.accelerator.unwrap_model(trainer.model)).__name__ in names


def counted_positions(inputs: Mapping[str, Any], outputs: Any, trainer: Any) -> Tensor | None:
    """Where the task loss counts a position, in the shape of the logits without the last dimension; None for all.

    Raises:
        ValueError: the labels are not one class a position, and the divergence is one of distributions.
    """
    logits, labels = logits_of(outputs), inputs.get("labels")
    if inputs.get("shift_labels") is not None:
        return _of(inputs["shift_labels"] != IGNORED)
    if labels is None:
        return None
    if labels.shape != logits.shape[:-1] or labels.is_floating_point() or logits.size(-1) == 1:
        if trainer.world.config.divergence != "mse":
            raise ValueError(
                f"labels of shape {tuple(labels.shape)} for logits of shape {tuple(logits.shape)} are not one class a "
                f"row, but --codistill-divergence {trainer.world.config.divergence} compares distributions over "
                f"classes: use --codistill-divergence mse"
            )
        return None
    if shifts_labels(trainer):
        return _of(F.pad(labels[..., 1:], (0, 1), value=IGNORED) != IGNORED)
    return _of(labels != IGNORED)


def _of(mask: Any) -> Tensor:
    assert isinstance(mask, Tensor)
    return mask
