"""Beam search by fairseq's own generator, in this process: sentences in pieces to sentences in pieces."""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

from translation.safe_load import missing_fairseq, named_checkpoints


@dataclass(frozen=True, kw_only=True)
class Search:
    """As [ott] search, unless set otherwise. ``max_tokens``: of a batch, padding included."""

    beam: int = 4
    lenpen: float = 0.6
    max_tokens: int = 4000
    fp16: bool = False
    cpu: bool = False


def load(paths: Sequence[Path], data: Path) -> tuple[list[Any], Any]:
    """The models of some checkpoints in eval mode, and their task on another data-bin than they may name.

    Raises:
        ValueError: a checkpoint holds more than plain values, or is damaged.
    """
    try:
        from fairseq.checkpoint_utils import load_model_ensemble_and_task
    except ImportError as error:
        raise RuntimeError(missing_fairseq(error)) from error
    logging.getLogger("fairseq").setLevel(logging.WARNING)
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"no checkpoint {path}")
    with torch.serialization.safe_globals([argparse.Namespace]), named_checkpoints():
        names = [str(path) for path in paths]
        models, _, task = load_model_ensemble_and_task(names, arg_overrides={"data": str(data)})
    return [model.eval() for model in models], task


def reference_batches(task: Any, subset: str, max_tokens: int) -> Iterator[dict[str, Any]]:
    """All of a split with its references, in order of length."""
    task.load_dataset(subset)
    dataset = task.dataset(subset)
    yield from task.get_batch_iterator(dataset, max_tokens=max_tokens).next_epoch_itr(shuffle=False)


@torch.inference_mode()
def translate(models: list[Any], task: Any, sentences: Sequence[Sequence[str]], search: Search) -> list[list[str]]:
    """The best hypothesis of the models together for each sentence; an ensemble if there are several.

    Raises:
        ValueError: a sentence has more pieces than the models have positions.
    """
    device = torch.device("cuda" if torch.cuda.is_available() and not search.cpu else "cpu")
    models = [_ready(model, device, search) for model in models]
    generation = argparse.Namespace(beam=search.beam, lenpen=search.lenpen)
    generator = task.build_generator(models, generation)
    found: dict[int, list[str]] = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="'pin_memory' argument is set")  # fairseq always asks for it
        for batch in _batches(models, task, sentences, search):
            hypotheses = task.inference_step(generator, models, _moved(batch, device))
            for number, ranked in zip(batch["id"].tolist(), hypotheses, strict=True):
                found[number] = task.target_dictionary.string(ranked[0]["tokens"]).split()
    return [found[number] for number in range(len(sentences))]


def _ready(model: Any, device: torch.device, search: Search) -> Any:
    model = (model.half() if search.fp16 else model).to(device)
    model.make_generation_fast_(beamable_mm_beam_size=None)
    return model


def _batches(models: list[Any], task: Any, sentences: Sequence[Sequence[str]], search: Search) -> Any:
    from fairseq.utils import resolve_max_positions

    dictionary = task.source_dictionary
    tokens = [dictionary.encode_line(" ".join(pieces), add_if_not_exist=False).long() for pieces in sentences]
    lengths = numpy.array([len(line) for line in tokens])
    positions = resolve_max_positions(task.max_positions(), *[model.max_positions() for model in models])
    limit = positions[0] if isinstance(positions, tuple) else positions
    if (longest := int(lengths.max())) > limit:
        raise ValueError(
            f"sentence {int(lengths.argmax()) + 1} has {longest} pieces, but the models have positions for {limit}: "
            f"split it"
        )
    return task.get_batch_iterator(
        task.build_dataset_for_inference(tokens, lengths),
        max_tokens=max(search.max_tokens, longest),
        max_positions=positions,
        required_batch_size_multiple=1,  # fairseq's 8 drops sentences
        num_workers=0,
        disable_iterator_cache=True,
    ).next_epoch_itr(shuffle=False)


def _moved(batch: Any, device: torch.device) -> Any:
    from fairseq.utils import move_to_cuda

    return batch if device.type == "cpu" else move_to_cuda(batch)
