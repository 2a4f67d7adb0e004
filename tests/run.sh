#!/usr/bin/env bash
# Makes .venv (2 to 10 minutes, once), then style, types, the site of docs/ with broken links as errors, and tests. Arguments go to pytest:
#   bash tests/run.sh -m quick       # what starts no commands: about a minute
#   bash tests/run.sh tests/translation -k prepare
#   bash tests/run.sh --real-python  # a real interpreter for each command, as users start them: slow
#   bash tests/run.sh -n 0           # in one process, for --pdb
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$ROOT/recipes/lib/venv.sh"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # the tests start several ranks: their threads would fight

make_venv
cd "$ROOT"
echo "== ruff"
"$VENV/bin/ruff" check .
echo "== mypy"
"$VENV/bin/mypy"
echo "== docs"
NO_MKDOCS_2_WARNING=1 "$VENV/bin/mkdocs" build --strict # --quiet would hide broken links from --strict, too
echo "== pytest: a few minutes on 2 cores"
"$VENV/bin/python" -m pytest -n auto --maxprocesses 4 --dist worksteal "$@"
