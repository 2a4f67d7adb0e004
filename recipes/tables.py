"""Tables and figures of a directory of runs, and what they say about each finding.

    python -m recipes.tables RUNS --out DIR
    python -m recipes.tables results/cifar10/runs --plan results/cifar10/plan.yaml --out results/cifar10

RUNS holds run directories (of either trainer) or the raw summaries that the runner keeps. The directory of a run is
its arm and its seed: ``adjusted-s3``. Without runs of a finding's arms its section says so.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas
from tabulate import tabulate

from recipes.figures import draw_by, draw_curves, label, matching, save
from recipes.findings import Claim, Finding, Result, examine, read_aliases, read_findings
from recipes.frames import Runs, by_arm, load_runs
from recipes.plan import read_plan

FINDINGS = Path(__file__).parent / "imagenet" / "findings.yaml"
MARK = "<!-- tables -->"
DECIMALS = {"train_loss": 3, "valid_loss": 3, "agreement": 3, "distance_from_start": 2, "mb_sent": 1, "best_update": 0}
DECIMALS |= dict.fromkeys(("mean_valid_nll", "mean_best_valid_nll", "mean_train_nll", "valid_nll", "best_valid_nll"), 3)


@dataclass(frozen=True)
class Planned:
    """Seeds that the plan asks for, by arm; empty without a plan."""

    seeds: Mapping[str, frozenset[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path | None, aliases: Mapping[str, str]) -> Planned:
        seeds: dict[str, set[int]] = {}
        for run in read_plan(path).runs if path is not None else ():
            seeds.setdefault(run.arm, set()).add(run.seed)
        seeds = {alias: seeds[arm] for alias, arm in aliases.items() if arm in seeds} | seeds
        return cls({arm: frozenset(chosen) for arm, chosen in seeds.items()})

    def common(self, arms: Sequence[str]) -> int:
        """Seeds that all of the arms are to have."""
        sets = [self.seeds.get(arm, frozenset()) for arm in arms]
        return len(frozenset.intersection(*sets)) if sets else 0


def report(runs: Runs, findings: Sequence[Finding], planned: Planned, out: Path) -> str:
    """Everything as Markdown; the figures are drawn into ``out``."""
    sections = [_overview(runs, findings, planned)]
    for finding in findings:
        sections.append("\n\n".join(_section(runs, finding, planned, out)))
    return "\n\n".join(sections) + "\n"


def _overview(runs: Runs, findings: Sequence[Finding], planned: Planned) -> str:
    """A row a claim: what was compared, by how much they differ, and the verdict."""
    rows = [
        (finding.id, claim.text, _formula(claim), *_outcome(examine(runs.table, claim), claim, planned, runs.failed))
        for finding in findings
        for claim in finding.claims
    ]
    headers = ("", "claim", "contrast", "mean", "standard error", "95 % interval", "seeds", "")
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def _formula(claim: Claim) -> str:
    """``a - b`` of a contrast."""
    terms = []
    for arm, weight in claim.contrast.items():
        factor = "" if abs(weight) == 1 else f"{abs(weight):g} "
        own = f" ({claim.measure_of[arm]})" if arm in claim.measure_of else ""
        terms.append(f"{'-' if weight < 0 else '+'} {factor}{arm}{own}")
    return f"{claim.measure}: " + " ".join(terms).removeprefix("+ ")


def _outcome(
    result: Result, claim: Claim, planned: Planned, failed: Mapping[str, frozenset[int]]
) -> tuple[str, str, str, str, str]:
    places = DECIMALS.get(claim.measure, 2)
    of = planned.common(list(claim.contrast))
    lost = len(frozenset[int]().union(*(failed.get(arm, frozenset()) for arm in claim.contrast)))
    seeds = _seeds(result.seeds, of, lost)
    verdict = result.verdict
    if not result.seeds:
        return "", "", "", seeds, f"**{verdict}**"
    if result.seeds < 2:
        return f"{result.mean:+.{places}f}", "", "", seeds, f"{verdict}, no verdict"
    said = f"**{verdict}**" if result.seeds + lost >= of else f"{verdict} so far"
    interval = f"{result.low:+.{places}f} to {result.high:+.{places}f}"
    se = f"{result.se:.{places}f}"
    if result.pooled:
        se += f" (all arms; own {result.own_se:.{places}f})"
    return f"{result.mean:+.{places}f}", se, interval, seeds, said


def _seeds(done: int, planned: int, failed: int) -> str:
    """``2 of 3, 1 failed``."""
    return f"{done}{f' of {planned}' if planned else ''}{f', {failed} failed' if failed else ''}"


def _section(runs: Runs, finding: Finding, planned: Planned, out: Path) -> Iterator[str]:
    yield f"## {finding.id}. {finding.title}"
    if finding.paper:
        yield f"The paper: {finding.paper}"
    if finding.note:
        yield finding.note.strip()
    yield arms_table(runs, finding, planned)
    for figure in finding.figures:
        options = {key: value for key, value in figure.items() if key not in ("file", "kind")}
        drawn = draw_curves(runs, **options) if figure["kind"] == "curves" else draw_by(runs, **options)
        path = out / "figures" / figure["file"]
        if drawn is None:
            path.unlink(missing_ok=True)  # that of other runs
        else:
            save(drawn, path)
            yield f"![{finding.title}](figures/{path.name})"


def arms_table(runs: Runs, finding: Finding, planned: Planned) -> str:
    """A row an arm: each measure as mean ± standard deviation (standard error), and the number of seeds."""
    rows = []
    for arm in matching([*planned.seeds, *runs.table["arm"], *runs.failed], finding.arms):
        chosen = runs.table[runs.table["arm"] == arm]
        seeds = _seeds(len(chosen), len(planned.seeds.get(arm, ())), len(runs.failed.get(arm, ())))
        papers = (figures.get(arm, "") for figures in finding.papers.values())
        rows.append((arm, seeds, *(_cell(chosen, measure) for measure in finding.columns), *papers))
    if not rows:
        return "No runs of this finding's arms."
    of = f" ({finding.papers_of})" if finding.papers_of else ""
    papers = (f"{label(measure)}, the paper's{of}" for measure in finding.papers)
    headers = ("arm", "seeds", *(label(measure) for measure in finding.columns), *papers)
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def _cell(chosen: pandas.DataFrame, measure: str) -> str:
    if measure not in chosen or chosen[measure].dropna().empty:
        return ""
    (row,) = by_arm(chosen, measure).to_dict("records")
    places = DECIMALS.get(measure, 2)
    without = len(chosen) - row["seeds"]  # a training that went to infinity has no loss
    of = f", {without} without" if without else ""
    if row["seeds"] < 2:
        return f"{row['mean']:.{places}f}{of}"
    return f"{row['mean']:.{places}f} ± {row['sd']:.{places}f} ({row['se']:.{places}f}){of}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="recipes.tables", description="Tables and figures of a directory of runs.")
    parser.add_argument("runs", type=Path)
    parser.add_argument("--findings", type=Path, default=FINDINGS, help="default: those of recipes/imagenet")
    parser.add_argument("--plan", type=Path, help="compare with the runs that it asks for")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/tables"),
        help="directory of tables.md and figures/; a README.md there with the line '<!-- tables -->' has the tables "
        "behind that line instead (default: runs/tables)",
    )
    args = parser.parse_args(argv)
    try:
        runs = load_runs(args.runs)
        datasets = runs.table["dataset"].dropna().unique() if "dataset" in runs.table else ()
        aliases = read_aliases(args.findings, datasets)
        planned = Planned.of(args.plan, aliases)
        text = report(runs.with_aliases(aliases), read_findings(args.findings), planned, args.out)
    except ValueError as error:
        parser.error(str(error))
    print(text)
    print(f"written into {write_page(args.out, text)}")


def write_page(out: Path, text: str) -> Path:
    """Replace what is behind the mark in README.md, or write tables.md."""
    page, alone = out / "README.md", out / "tables.md"
    head, mark, _ = page.read_text(encoding="utf-8").partition(MARK) if page.is_file() else ("", "", "")
    chosen = page if mark else alone
    chosen.parent.mkdir(parents=True, exist_ok=True)
    chosen.write_text(f"{head}{mark}\n\n{text}" if mark else text, encoding="utf-8")
    return chosen


if __name__ == "__main__":
    main()
