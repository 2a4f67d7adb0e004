"""What the site has beyond docs/: pages from elsewhere in the checkout, the recipes' own words, pages without a place.

Links are written for the checkout, where ``../results/cifar10/README.md`` is a file; the site gets them as links
between its pages. What a link leads to and the site does not have is a warning, so ``--strict`` fails.
"""

import ast
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = ("recipes/*/README.md", "results/*/*.md")  # pages; what pages link to comes along
HOSTS = "Trainers and hosts"
RECIPES = "<!-- recipes -->"
LONG_NAME = re.compile(r"[\w./-]{28,}")
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Pages that the menu does not name, such as those of further hosts, come behind the hosts that it names."""
    named = set(re.findall(r"[\w./-]+\.md", str(config.nav)))
    section = next(entry[HOSTS] for entry in config.nav if HOSTS in entry)
    pages = (path.relative_to(config.docs_dir).as_posix() for path in sorted(Path(config.docs_dir).rglob("*.md")))
    section.extend(page for page in pages if page not in named)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take in the pages from outside docs/, under the path that they have in the checkout."""
    for path in sorted(path for pattern in ELSEWHERE for path in ROOT.glob(pattern)):
        files.append(_file(config, path.relative_to(ROOT).as_posix()))
    return files


def _file(config: MkDocsConfig, name: str) -> File:
    return File.generated(config, name, abs_src_path=str(ROOT / name), inclusion=InclusionLevel.INCLUDED)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    if RECIPES in markdown:
        markdown = markdown.replace(RECIPES, _recipes())
    here = page.file.src_uri
    inside = Path(page.file.abs_src_path).is_relative_to(config.docs_dir)
    directory = posixpath.dirname(f"docs/{here}" if inside else here)

    def link(match: re.Match[str]) -> str:
        name = posixpath.normpath(posixpath.join(directory, match[1]))
        target = name.removeprefix("docs/")
        if target not in files.src_uris:
            if not name.startswith(("docs/", "../")) and (ROOT / name).is_file():
                files.append(_file(config, name))
            else:
                return match[1]  # as it is: MkDocs says that it leads nowhere
        return posixpath.relpath(target, posixpath.dirname(here) or ".")

    return LINK.sub(link, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lines break inside of long names, which would widen tables, and not behind the dashes of an option."""

    def code(match: re.Match[str]) -> str:
        breakable = LONG_NAME.sub(lambda name: re.sub(r"(?<=\w)[_/]", r"\g<0><wbr>", name[0]), match[0])
        return re.sub(r"(?<![\w-])--?\w+", r'<span class="option">\g<0></span>', breakable)

    return re.sub(r"<code>[^<]+</code>", code, html)


def _recipes() -> str:
    """What the recipes say of themselves, one directory after the other."""
    parts = []
    for directory in sorted(path for path in (ROOT / "recipes").iterdir() if path.is_dir() and path.name != "lib"):
        recipes = sorted(path for path in directory.iterdir() if _is_started(path))
        if recipes:
            parts += [f"## recipes/{directory.name}", *(_recipe(path) for path in recipes)]
    return "\n\n".join(parts)


def _is_started(path: Path) -> bool:
    if path.suffix == ".py":
        return "__main__" in path.read_text() and ast.get_docstring(ast.parse(path.read_text())) is not None
    return path.suffix == ".sh" and path.name != "lib.sh"


def _recipe(path: Path) -> str:
    """The words at the top of a recipe; what is indented in them is a command, cost and result stand by themselves."""
    if path.suffix == ".py":
        return f"### {path.name}\n\n{ast.get_docstring(ast.parse(path.read_text()))}"
    comment = []
    for line in path.read_text().splitlines()[1:]:
        if not line.startswith("#"):
            break
        text = line.removeprefix("#").removeprefix(" ")
        if re.match("Cost:|Should ", text):
            comment.append("")
        comment.append(f"    {text.strip()}" if text.startswith("  ") else re.sub(r"([*<\[\]])", r"\\\1", text))
    return "\n".join([f"### {path.name}", "", *comment])
