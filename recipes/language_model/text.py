"""The English side of the shipped corpus as sentencepiece ids, in blocks of a context and the piece behind it."""

import hashlib
from pathlib import Path

import sentencepiece
import torch
from torch import Tensor

from codistill_ext.job.storage import load_whole, save_whole
from translation.corpus import SPLITS, read_lines, shipped_prefix, side_path
from translation.cutting import train_sentencepieces


def prepare(directory: Path, vocabulary: int, lines: int | None = None) -> Path:
    """Make the file of ids, whole or not at all, unless it is there; where it is.

    Args:
        lines: of each split, the first ones; all unless given.
    """
    paths = {split: side_path(shipped_prefix(split), "en") for split in SPLITS}
    content = hashlib.sha256(b"".join(path.read_bytes() for path in paths.values())).hexdigest()
    made = directory / f"{content[:12]}-{vocabulary}-{lines or 'all'}.pt"
    if not made.exists():
        directory.mkdir(parents=True, exist_ok=True)
        text = {split: read_lines(path)[:lines] for split, path in paths.items()}
        model = train_sentencepieces(text["train"], vocabulary, "bpe")
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        save_whole({split: _ids(processor, part) for split, part in text.items()}, made)
    return made


def _ids(processor: sentencepiece.SentencePieceProcessor, lines: list[str]) -> Tensor:
    """One after another, each with an end."""
    pieces = processor.encode(lines, add_eos=True)
    return torch.tensor([piece for line in pieces for piece in line], dtype=torch.int32)


def read_blocks(made: Path, context: int) -> dict[str, Tensor]:
    """Each split as int64 of shape (blocks, context + 1): a block's last piece is the next one's first.

    What is left at the end of a split, less than a block, is dropped.
    """
    blocks = {}
    for split, ids in load_whole(made).items():
        count = (len(ids) - 1) // context
        if count < 1:
            raise ValueError(f"the {split} text has {len(ids)} pieces, less than a block: choose a shorter --context")
        blocks[split] = ids[: count * context + 1].unfold(0, context + 1, context).long()
    return blocks
