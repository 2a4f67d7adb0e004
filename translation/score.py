"""BLEU of a checkpoint, or of an ensemble `a.pt:b.pt`, on a data-bin that `translation.prepare` made.

`python -m translation.score DATA_BIN --path CHECKPOINT` translates, joins the pieces and compares with the raw
reference. `bleu` is detokenized sacreBLEU with its signature. `--compound-split` adds the tokenized figure with
hyphenated compounds split, which papers report too: higher by about half a point and not comparable, so it never
shares a column with the first. All of a run at once, and other test sets: `translation.evaluate`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from codistill_ext.job.failures import Parser
from translation.decode import Search, load, translate
from translation.metrics import bleu, compound_split_bleu
from translation.pieces import pieces_of, tokenizer_of
from translation.testset import of_split


def score(options: argparse.Namespace) -> dict[str, Any]:
    """Translates and scores; what `main` prints."""
    pieces, settings = pieces_of(options.data)
    test = of_split(options.data, options.subset, settings)
    models, task = load([Path(path) for path in options.path.split(":")], options.data)
    search = Search(beam=options.beam, lenpen=options.lenpen, max_tokens=options.max_tokens, cpu=options.cpu)
    language = settings["target_lang"]
    hypotheses = [pieces.decode(line, language) for line in translate(models, task, test.sources, search)]
    if options.output is not None:
        options.output.write_text("".join(f"{line}\n" for line in hypotheses), encoding="utf-8")
    lowercase = settings["lowercase"]
    result = {**bleu(hypotheses, test.references, lowercase=lowercase), "sentences": len(test.sources)}
    result |= {"beam": options.beam, "lenpen": options.lenpen}
    if options.compound_split:
        tokenizer = tokenizer_of(pieces, language)
        result["compound_split_tokenized"] = compound_split_bleu(hypotheses, test.references, tokenizer, lowercase)
    return result


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(prog="python -m translation.score", description=__doc__)
    parser.add_argument("data", type=Path, help="a data-bin made by translation.prepare")
    parser.add_argument("--path", required=True, help="a checkpoint, or an ensemble a.pt:b.pt")
    parser.add_argument("--subset", choices=("test", "valid"), default="test")
    parser.add_argument("--beam", type=int, default=4)
    parser.add_argument("--lenpen", type=float, default=0.6)
    parser.add_argument("--max-tokens", type=int, default=4000, help="of a batch")
    parser.add_argument("--output", type=Path, help="also write the translations, one a line")
    parser.add_argument("--compound-split", action="store_true", help="add that figure, labelled apart")
    parser.add_argument("--cpu", action="store_true", help="even where there is a GPU")
    options = parser.parse_args(arguments)
    try:
        print(json.dumps(score(options), indent=2, ensure_ascii=False))
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"translation.score: {error}")


if __name__ == "__main__":
    main()
