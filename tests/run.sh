#!/usr/bin/env bash
# Makes .venv (2 to 10 minutes, once), then style, types and tests. Arguments go to pytest:
#   bash tests/run.sh tests/translation -k prepare
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
echo "== pytest: several minutes on 2 cores"
"$VENV/bin/python" -m pytest "$@"
