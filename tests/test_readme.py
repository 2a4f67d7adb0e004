"""What README.md and docs/ promise is what the code does."""

import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from codistill_ext import CodistillConfig
from codistill_ext.config import flag
from tests.commands import ROOT, run, torchrun

README = ROOT / "README.md"
LOOP = ROOT / "docs" / "loop.md"
OPTIONS = ROOT / "docs" / "options.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]


def code_blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def _program() -> str:
    (block,) = (block for block in code_blocks(LOOP, "python") if "# NEW" in block)
    return block


@pytest.mark.parametrize("processes", [pytest.param(2, marks=pytest.mark.real_python), 4])
def test_the_loop_trains_two_models_that_differ(tmp_path: Path, processes: int) -> None:
    block = _program()
    (tmp_path / "loop.py").write_text(block)
    output = run(torchrun(processes, "loop.py"), cwd=tmp_path)
    assert "Warning" not in output
    top1 = {int(index): float(value) for index, value in re.findall(r"^model (\d): top-1 ([\d.]+) %$", output, re.M)}
    assert top1.keys() == {0, 1} and min(top1.values()) > 85, output
    agreement, distance = map(float, re.search(r"agreement ([\d.]+) %, distance ([\d.]+)", output).groups())
    assert 85 < agreement < 100 and distance > 1, output


def test_the_readme_shows_the_lines_of_the_loop_that_are_not_those_of_a_plain_one() -> None:
    (shown,) = code_blocks(README, "diff")
    added = [line.removeprefix("+").strip() for line in shown.splitlines() if line.startswith("+")]
    marked = re.findall(r"^ *(.*?)  # (?:NEW|CHANGED from: (.*))", _program(), re.MULTILINE)
    assert added == [line for line, _ in marked]
    removed = [line.removeprefix("-") for line in shown.splitlines() if line.startswith("-")]
    before = [plain for _, plain in marked if plain]
    assert all(line.endswith(plain) for line, plain in zip(removed, before, strict=True))
    assert (len(removed), len(added)) == (3, 8)


def test_the_options_table_names_every_option_with_its_default() -> None:
    rows = re.findall(r"^\| `(--codistill-\S+)` \| `?(\S+?)`? \| (.*) \|$", OPTIONS.read_text(), re.MULTILINE)
    assert [(name, default) for name, default, _ in rows] == [
        (flag(option.name), str(option.default) or "(empty)") for option in dataclasses.fields(CodistillConfig)
    ]
    meanings = {name: meaning for name, _, meaning in rows}
    for option in dataclasses.fields(CodistillConfig):
        for choice in option.metadata["choices"] or ():
            assert f"`{choice}`" in meanings[flag(option.name)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_what_exists(page: Path) -> None:
    text = page.read_text()
    options = {flag(option.name) for option in dataclasses.fields(CodistillConfig)}
    # Of fairseq's criterion alone.
    options |= {f"--codistill-{name}" for name in ("label-smoothing", "dropout", "weight-decay")}
    assert set(re.findall(r"--codistill-[a-z][a-z-]*[a-z]", text)) <= options
    for target in re.findall(r"\]\((?!https://)([^)]+)\)", text):
        file, _, heading = target.partition("#")
        linked = (page.parent / file).resolve() if file else page
        assert linked.exists(), target
        assert not heading or heading in _headings(linked), target
    for name in re.findall(
        r"`((?:recipes|tests|benchmarks|requirements|codistill_ext|vision|translation)/[\w./-]+)`", text
    ):
        assert (ROOT / name).exists(), name
    for block in code_blocks(page, "python"):
        compile(block, page.name, "exec")


def _headings(page: Path) -> set[str]:
    """As the anchors that web pages of repositories make of them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def _vision_commands() -> Iterator[list[str]]:
    for page in PAGES:
        for line in page.read_text().replace("\\\n", " ").splitlines():
            if "-m vision.train --" in line and "--help" not in line and "`" not in line:
                options = shlex.split(line.split("-m vision.train ")[1])
                yield [option for option in options if option != "..."]


def test_vision_commands_are_accepted() -> None:
    pytest.importorskip("torchvision")
    from vision.options import build_parser, parse_options

    commands = list(_vision_commands())
    assert len(commands) >= 5
    for command in commands:
        given = command if "--dataset" in command or "--data-path" in command else [*command, "--data-path", "DIR"]
        parse_options(build_parser(), given)


def _fairseq_commands() -> Iterator[list[str]]:
    for page in PAGES:
        for line in page.read_text().replace("\\\n", " ").splitlines():
            _, found, options = re.sub(r'"\$\(command -v (fairseq-train)\)"', r"\1", line).partition("fairseq-train ")
            if found and "--arch" in options:
                yield shlex.split(options.replace("--user-dir codistill_ext", ""))


def test_fairseq_commands_are_accepted() -> None:
    options = pytest.importorskip("fairseq.options")
    import codistill_ext.tasks.codistill_translation  # noqa: F401  registers the criterion

    commands = list(_fairseq_commands())
    assert len(commands) >= 4
    for command in commands:
        parsed = options.parse_args_and_arch(options.get_training_parser(), command)
        assert parsed.codistill_models == 2 and parsed.max_update > 0


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["license"] == "MIT"
    assert f'version="{citation["version"]}"' in (ROOT / "setup.py").read_text()
