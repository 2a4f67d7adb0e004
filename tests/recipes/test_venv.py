"""recipes/lib/venv.sh with a stand-in for pip: what it says, what it does again, and what a second start does not."""

import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from recipes.pip_install import pip_error
from tests.commands import ROOT, run, stand_in
from vision.retrying import TRIES, Failure

STEPS = ["pip", "fairseq.txt", "torch", ".[translation,vision,recipes,huggingface,fabric,docs,dev]"]
NO_VERSION = "ERROR: No matching distribution found for torch"
BROKEN = "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError('no route')': /torch/"
REFUSED = "WARNING: lapse\nERROR: Could not find a version that satisfies the requirement torch\n" + NO_VERSION
# Notes what it is to install; fails as the file of that name says, a line of numbers of failures left and its words.
PIP = """
import pathlib, sys
here = pathlib.Path({here!r})
if sys.argv[1] == "--version":
    sys.exit()
wanted = "torch" if "torch" in sys.argv else pathlib.Path(sys.argv[-1]).name
with open(here / "calls", "a") as calls:
    calls.write(wanted + "\\n")
trouble = here / f"trouble-{{wanted}}"
if trouble.exists():
    left, _, words = trouble.read_text().partition("\\n")
    if int(left):
        trouble.write_text(f"{{int(left) - 1}}\\n{{words}}")
        sys.exit(words)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout whose interpreter makes environments with the stand-in, in which a pause takes no time."""
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__main__.py").write_text(PIP.format(here=str(tmp_path)))
    (tmp_path / "sitecustomize.py").write_text("import time\ntime.sleep = lambda seconds: None\n")
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in ("recipes", "vision", "setup.py", "requirements"):
        (checkout / name).symlink_to(ROOT / name)
    python, target = shlex.quote(sys.executable), shlex.quote(str(tmp_path))
    stand_in(
        tmp_path,
        "python",
        f"""case "$*" in
        "-m venv "*) {python} -m venv --without-pip "$3" && cp -r {target}/pip {target}/sitecustomize.py "$3"/lib/*/ \
            && mv "$3"/lib/*/pip "$3"/lib/*/sitecustomize.py "$3"/lib/*/site-packages/; echo made >>{target}/made ;;
        *) exec {python} "$@" ;;
        esac""",
    )
    return checkout


def _make_venv(root: Path, *, fails: bool = False) -> str:
    script = f"set -euo pipefail; ROOT={root}; source {root}/recipes/lib/venv.sh; NEED_GB=0; make_venv; echo on"
    return run(["bash", "-c", script], fails=fails, variables={"PYTHON": str(root.parent / "python"), "PYTHONPATH": ""})


def _calls(root: Path) -> list[str]:
    return (root.parent / "calls").read_text().splitlines()


def _trouble(root: Path, times: int, words: str) -> None:
    (root.parent / "trouble-torch").write_text(f"{times}\n{words}")


def test_a_lapse_is_tried_again_and_a_second_start_uses_the_environment(root: Path) -> None:
    _trouble(root, 2, f"{BROKEN}\n{NO_VERSION}")
    output = _make_venv(root)
    assert output.endswith("on\n")
    assert _calls(root) == [*STEPS[:2], "torch", "torch", "torch", STEPS[3]]
    for attempt in (1, 2):
        assert output.count(f"torch: try {attempt} of {TRIES} failed, the next in ") == 1, output
    assert "pip: connection broken by 'NewConnectionError('no route')'" in output
    assert _make_venv(root) == f"== using {root}/.venv\non\n"


def test_a_refusal_is_final_and_the_next_starts_go_on_behind_what_is_done(root: Path) -> None:
    _trouble(root, 1, REFUSED)
    output = _make_venv(root, fails=True)
    assert "\non\n" not in output
    assert "stopped: torch could not be fetched in 1 try: pip: ERROR: Could not find a version" in output
    assert NO_VERSION in output and "lapse" not in output and f"All of pip's output: {root}/.venv/install.log" in output
    assert _calls(root) == STEPS[:3]
    with ThreadPoolExecutor() as pool:  # two at once: one goes on, the other uses what it makes
        for output in pool.map(_make_venv, [root, root]):
            assert output.endswith("on\n")
    assert _calls(root) == STEPS[:3] + STEPS[2:]
    assert (root.parent / "made").read_text() == "made\n"


@pytest.mark.parametrize(
    ("output", "failure", "message"),
    [
        (f"Collecting pytest-timeout\n{REFUSED}", Failure.REFUSED, NO_VERSION),
        (f"{BROKEN}\n{NO_VERSION}", Failure.LAPSED, "no route"),
        (f"{BROKEN}\nERROR: ResolutionImpossible: for help", Failure.LAPSED, "no route"),
        ("ERROR: ResolutionImpossible: for help", Failure.REFUSED, "ResolutionImpossible"),
        ("error: incomplete-download\n\n× Failed because not enough bytes", Failure.LAPSED, "not enough bytes"),
        ("ERROR: Exception:\nTraceback:\n  File\nurllib3.exceptions.ReadTimeoutError: late", Failure.LAPSED, "late"),
        ("ERROR: HTTP error 503 while getting torch", Failure.LAPSED, "503"),
        ("ERROR: HTTP error 404 while getting torch", Failure.REFUSED, "404"),
        (f"{BROKEN}\nERROR: [Errno 28] No space left on device", Failure.REFUSED, "No space left"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE FILE", Failure.DOUBTFUL, "DO NOT MATCH"),
        ("No module named pip", Failure.REFUSED, "No module named pip"),
    ],
)
def test_the_errors_of_pip_and_what_they_are(output: str, failure: Failure, message: str) -> None:
    error = pip_error(output)
    assert error.failure is failure and message in str(error)
