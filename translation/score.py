"""BLEU of a checkpoint, or of an ensemble `a.pt:b.pt`, on a data-bin that `translation.prepare` made.

`python -m translation.score DATA_BIN --path CHECKPOINT` has stock fairseq translate, joins the pieces and
compares with the raw reference. `bleu` is detokenized sacreBLEU with its signature. `--compound-split` adds
the tokenized figure with hyphenated compounds split, which papers report too: higher by about half a point
and not comparable, so it never shares a column with the first.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from codistill_ext.job.failures import Parser
from translation.corpus import read_lines
from translation.prepare import RAW, SPM_MODEL, STAMP
from translation.safe_load import NAME

_TOKENIZE: Callable[[str], str] = Tokenizer13a()  # type: ignore[no-untyped-call]
HYPOTHESIS = re.compile(r"^H-(\d+)\t([^\t]*)\t(.*)$")


def parse_hypotheses(output: Iterable[str]) -> dict[int, list[str]]:
    """The best hypothesis of each sentence, in pieces, from the lines that fairseq-generate prints."""
    best: dict[int, tuple[float, list[str]]] = {}
    for match in filter(None, (HYPOTHESIS.match(line.rstrip("\n")) for line in output)):
        number, score, pieces = int(match[1]), float(match[2]), match[3].split()
        if number not in best or score > best[number][0]:
            best[number] = score, pieces
    return {number: pieces for number, (_, pieces) in best.items()}


def in_order(hypotheses: dict[int, list[str]], count: int) -> list[list[str]]:
    """The hypotheses 0..count-1; ValueError when one is missing or there are more."""
    wrong = sorted(set(range(count)) ^ hypotheses.keys())
    if wrong:
        raise ValueError(
            f"fairseq-generate answered {len(hypotheses)} sentences, the reference has {count}; "
            f"sentence {wrong[0]} is the first that does not pair up"
        )
    return [hypotheses[number] for number in range(count)]


def compound_split(sentence: str) -> str:
    """13a tokens with hyphenated compounds in three: `E-Mail` is `E ##AT##-##AT## Mail`."""
    return re.sub(r"(\S)-(\S)", r"\1 ##AT##-##AT## \2", _TOKENIZE(sentence))


def bleu(hypotheses: list[str], references: list[str], tokenize: str | None = None) -> dict[str, Any]:
    """Corpus BLEU in points, with sacrebleu's signature."""
    metric = BLEU(tokenize=tokenize, force=tokenize == "none")
    score = metric.corpus_score(hypotheses, [references]).score
    return {"bleu": score, "signature": str(metric.get_signature())}


def generate(options: argparse.Namespace) -> list[str]:
    """Runs fairseq-generate; returns its lines."""
    command = [sys.executable, "-m", "translation.safe_load", "generate", str(options.data)]
    command += ["--path", options.path]
    command += ["--gen-subset", options.subset, "--beam", str(options.beam), "--lenpen", str(options.lenpen)]
    # With the default of 8 this fairseq silently drops a last batch that is not a multiple of 8 sentences.
    command += ["--max-tokens", str(options.max_tokens), "--required-batch-size-multiple", "1"]
    command += ["--num-workers", "0"]
    command += ["--cpu"] if options.cpu or not torch.cuda.is_available() else []
    command += ["--user-dir", options.user_dir] if options.user_dir else []
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        last = done.stderr.rstrip().rpartition("\n")[2]
        if last.startswith(f"{NAME}: "):  # it has said in a sentence what was wrong
            raise RuntimeError(last.removeprefix(f"{NAME}: "))
        raise RuntimeError(f"fairseq-generate failed; its last words:\n{done.stderr[-2000:]}")
    return done.stdout.split("\n")


def score(options: argparse.Namespace) -> dict[str, Any]:
    """Translates and scores; what `main` prints."""
    for path in options.path.split(":"):
        if not Path(path).is_file():
            raise FileNotFoundError(f"no checkpoint {path}")
    if not (options.data / STAMP).is_file():
        raise FileNotFoundError(f"{options.data} has no {STAMP}: make it with python -m translation.prepare")
    target = json.loads((options.data / STAMP).read_text())["settings"]["target_lang"]
    references = read_lines(options.data / RAW / f"{options.subset}.{target}")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(options.data / SPM_MODEL))
    pieces = in_order(parse_hypotheses(generate(options)), len(references))
    hypotheses = [processor.decode_pieces(line) for line in pieces]
    if options.output is not None:
        options.output.write_text("".join(f"{line}\n" for line in hypotheses), encoding="utf-8")
    result = {**bleu(hypotheses, references), "sentences": len(references), "beam": options.beam}
    result["lenpen"] = options.lenpen
    if options.compound_split:
        split = [compound_split(line) for line in hypotheses], [compound_split(line) for line in references]
        result["compound_split_tokenized"] = bleu(*split, tokenize="none")
    return result


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(prog="python -m translation.score", description=__doc__)
    parser.add_argument("data", type=Path, help="a data-bin made by translation.prepare")
    parser.add_argument("--path", required=True, help="a checkpoint, or an ensemble a.pt:b.pt")
    parser.add_argument("--subset", choices=("test", "valid"), default="test")
    parser.add_argument("--beam", type=int, default=4)
    parser.add_argument("--lenpen", type=float, default=0.6)
    parser.add_argument("--max-tokens", type=int, default=4000, help="a batch of generate")
    parser.add_argument("--output", type=Path, help="also write the translations, one a line")
    parser.add_argument("--compound-split", action="store_true", help="add that figure, labelled apart")
    parser.add_argument("--user-dir", help="handed on to fairseq-generate")
    parser.add_argument("--cpu", action="store_true", help="even where there is a GPU")
    options = parser.parse_args(arguments)
    try:
        print(json.dumps(score(options), indent=2, ensure_ascii=False))
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"translation.score: {error}")


if __name__ == "__main__":
    main()
