"""Test scores of a run: of each model and of their ensemble.

    python -m translation.evaluate RUN                          the test split of the run's data-bin
    python -m translation.evaluate RUN --test-set wmt14/full    a test set that sacrebleu knows and this machine has
    python -m translation.evaluate RUN --source FILE --reference FILE
    python -m translation.evaluate RUN --against OTHER_RUN      and sacrebleu's paired bootstrap between the two

Averages the last checkpoints of each model, translates, and writes RUN/evaluation/NAME.json and NAME.md, with the
translations beside them. Detokenised sacreBLEU and chrF come with their signatures; tokenised BLEU with split
compounds, as in Ott et al., is a column of its own, since it is higher. The paper would report model 0.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

from codistill_ext.job.failures import Parser
from codistill_ext.job.option_types import at_least
from translation import testset
from translation.average import NAMES, average, last_checkpoints, save
from translation.decode import Search, load, translate
from translation.metrics import bleu, chrf, compound_split_bleu
from translation.pieces import Pieces, pieces_of, tokenizer_of
from translation.results import ENSEMBLE, FOLDER, check_alike, compare, evaluation_of, write_lines, write_result
from translation.testset import TestSet

SAMPLES = 1000  # of the bootstrap


def model_directories(run: Path) -> list[Path]:
    """``model0``, ``model1``, ... of a run.

    Raises:
        FileNotFoundError: it is no run.
    """
    found = sorted(run.glob("model[0-9]*"), key=lambda path: int(path.name.removeprefix("model")))
    if not found:
        raise FileNotFoundError(
            f"{run} has no model0: name the --save-dir of a run of fairseq-train with codistill_ext"
        )
    return found


def data_of(run: Path, given: Path | None) -> Path:
    """The data-bin: the given one, or what the run was trained on."""
    if given is not None:
        return given
    # A job that writes for one model, which is coupled with others by files alone, keeps it with that model.
    configs = [run / "config.yaml", *(directory / "config.yaml" for directory in model_directories(run))]
    config = next((path for path in configs if path.is_file()), None)
    if config is None:
        raise FileNotFoundError(f"no {configs[0]}: say with --data which data-bin the run was trained on")
    data = Path(yaml.safe_load(config.read_text(encoding="utf-8"))["task"]["data"].split(":")[0])
    if not data.is_dir():
        raise FileNotFoundError(f"the run was trained on {data}, which is not there: name the data-bin with --data")
    return data


def checkpoint_of(directory: Path, last: int, by: str | None) -> Path:
    """The mean of a model's last checkpoints, saved beside them; with ``last`` 0 its best checkpoint.

    Raises:
        ValueError: it has not so many, or some by epoch and some by update and none is asked for.
        FileNotFoundError: no best checkpoint.
    """
    if last == 0:
        best = directory / "checkpoint_best.pt"
        if not best.is_file():
            raise FileNotFoundError(f"no {best}: average the last ones with --last N")
        return best
    kinds = [by] if by else [kind for kind in NAMES if any(NAMES[kind].fullmatch(p.name) for p in directory.iterdir())]
    if len(kinds) > 1:
        raise ValueError(f"{directory} has checkpoints by epoch and by update: choose with --by {' or '.join(NAMES)}")
    paths = last_checkpoints(directory, last, kinds[0] if kinds else "epoch")
    path = directory / f"average{last}.pt"
    save(average(paths), path)
    return path


def translations(checkpoints: dict[str, Path], data: Path, test: TestSet, search: Search) -> dict[str, list[list[str]]]:
    """What each model writes, and the ensemble if there are several."""
    models, task = load(list(checkpoints.values()), data)
    found = {
        name: translate([model], task, test.sources, search) for name, model in zip(checkpoints, models, strict=True)
    }
    if len(models) > 1:
        found[ENSEMBLE] = translate(models, task, test.sources, search)
    return found


def scores(hypotheses: Sequence[str], test: TestSet, pieces: Pieces, settings: dict[str, Any]) -> dict[str, Any]:
    """All figures of one system; text in lower case is compared with references in lower case."""
    lowercase = settings["lowercase"]
    tokenizer = tokenizer_of(pieces, settings["target_lang"])
    tokenised = compound_split_bleu(hypotheses, test.references, tokenizer, lowercase)
    plain = bleu(hypotheses, test.references, lowercase=lowercase)
    characters = chrf(hypotheses, test.references, lowercase=lowercase)
    return {
        "bleu": plain["bleu"],
        "chrf": characters["chrf"],
        "compound_split_bleu": tokenised["bleu"],
        "signatures": {
            "bleu": plain["signature"],
            "chrf": characters["signature"],
            "compound_split_bleu": tokenised["signature"],
        },
    }


def evaluate(run: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Average, translate, score, and write all of it; returns what the JSON file has."""
    directories = model_directories(run)
    data = data_of(run, options.data)
    pieces, settings = pieces_of(data)
    test = chosen_test_set(options, data, pieces, settings)
    checkpoints = {path.name: checkpoint_of(path, options.last, options.by) for path in directories}
    search = Search(
        beam=options.beam, lenpen=options.lenpen, max_tokens=options.max_tokens, fp16=options.fp16, cpu=options.cpu
    )
    language = settings["target_lang"]
    systems: dict[str, Any] = {}
    result = {
        "run": run.name,
        "test": test.name,
        "note": test.note,
        "direction": f"{settings['source_lang']}-{language}",
        "sentences": len(test.sources),
        "beam": options.beam,
        "lenpen": options.lenpen,
        "averaged": options.last,
        "lowercase": settings["lowercase"],
        "reported": "model0",
        "systems": systems,
    }
    if options.against is not None and options.against != run:  # before hours of translating, not after them
        model_directories(options.against)
        check_alike(run, result, options.against)
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    for name, cut in translations(checkpoints, data, test, search).items():
        hypotheses = [pieces.decode(line, language) for line in cut]
        write_lines(folder / f"{test.name}.{name}.txt", hypotheses)
        systems[name] = scores(hypotheses, test, pieces, settings)
    for number, lines in enumerate(test.references):
        write_lines(folder / f"{test.name}.reference{number}.txt", lines)
    write_result(folder / test.name, result, table(result))
    return result


def chosen_test_set(options: argparse.Namespace, data: Path, pieces: Pieces, settings: dict[str, Any]) -> TestSet:
    if options.test_set is not None:
        return testset.of_sacrebleu(options.test_set, data, pieces, settings)
    if options.source is not None:
        return testset.of_files(options.source, options.reference, pieces, settings)
    if options.reference:
        return testset.of_references(data, options.subset, options.reference, settings)
    return testset.of_split(data, options.subset, settings)


def table(result: dict[str, Any]) -> str:
    """Markdown: a row a system."""
    headers = ("", "sacreBLEU", "chrF2", "tokenised BLEU, compounds split")
    rows = [
        (name, *(f"{system[key]:.2f}" for key in ("bleu", "chrf", "compound_split_bleu")))
        for name, system in result["systems"].items()
    ]
    signatures = next(iter(result["systems"].values()))["signatures"]
    about = f"{result['run']}: {result['test']}, {result['direction']}, {result['sentences']} sentences, beam "
    about += f"{result['beam']}, length penalty {result['lenpen']}, "
    about += f"mean of {result['averaged']} checkpoints" if result["averaged"] else "best checkpoints"
    lines = [about, "", tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True), ""]
    lines += [f"- {name}: `{signature}`" for name, signature in zip(headers[1:], signatures.values(), strict=True)]
    return "\n".join([*lines, *([f"- {result['note']}"] if result["note"] else [])])


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="python -m translation.evaluate", description=__doc__, formatter_class=form)
    parser.add_argument("run", type=Path, help="the --save-dir of a run")
    parser.add_argument("--data", type=Path, help="the data-bin (default: that of the run)")
    parser.add_argument(
        "--last", type=at_least(0), default=10, help="checkpoints to average; 0: the best one (default: 10)"
    )
    parser.add_argument(
        "--by", choices=tuple(NAMES), help="checkpointE.pt or checkpoint_E_U.pt (default: what is there)"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--subset", choices=("test", "valid"), default="test", help="of the data-bin")
    where.add_argument("--test-set", help="by sacrebleu's name, such as wmt14/full")
    where.add_argument("--source", type=Path, help="any text to translate; with --reference")
    parser.add_argument(
        "--reference", type=Path, nargs="+", help="its translations, a file each (.xz and .gz are read)"
    )
    parser.add_argument("--against", type=Path, help="another run: paired bootstrap with its model 0 as the baseline")
    parser.add_argument("--samples", type=at_least(1), help=f"of the bootstrap (default: {SAMPLES})")
    parser.add_argument("--beam", type=at_least(1), default=4)
    parser.add_argument("--lenpen", type=float, default=0.6)
    parser.add_argument("--max-tokens", type=at_least(1), default=4000, help="of a batch")
    parser.add_argument("--fp16", action="store_true", help="on a GPU")
    parser.add_argument("--cpu", action="store_true", help="even where there is a GPU")
    options = parser.parse_args(arguments)
    if options.last == 0 and options.by:
        parser.error("--last 0 takes the best checkpoint: leave out --by")
    if options.samples is not None and options.against is None:
        parser.error("--samples is of the bootstrap: it needs --against")
    if options.source is not None and not options.reference:
        parser.error("--source needs --reference, the translation to compare with")
    if options.test_set is not None and options.reference:
        parser.error("--test-set has references of its own: leave out --reference, or take --source")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    try:
        result = evaluate(options.run, options)
        print(table(result))
        if options.against is not None:
            if evaluation_of(options.against, result["test"]) is None:
                print(table(evaluate(options.against, options)))
            print(compare(options.run, result, options.against, options.samples or SAMPLES)["table"])
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"translation.evaluate: {error}")


if __name__ == "__main__":
    main()
