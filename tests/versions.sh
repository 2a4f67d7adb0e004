#!/usr/bin/env bash
# The tests of the method (tests/core, tests/exchange, tests/job) under other versions than those of .venv:
#   bash tests/versions.sh              # the oldest torch under Python 3.11, and the newest under Python 3.12
#   bash tests/versions.sh 3.11 2.9.1   # another pair of Python and torch
# Each pair gets an environment of its own in .venv-versions: 6 GB and 2 to 10 minutes, once. A Python that is not
# there is left out.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
OLDEST=$(sed -n 's/.*install_requires=\["torch>=\([0-9.]*\)".*/\1/p' setup.py)
NEWEST=$(sed -n 's/^torch==//p' requirements/constraints.txt)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PYTHONPATH=$ROOT

# test_with PYTHON TORCH
test_with() {
    local python=python$1 venv=$ROOT/.venv-versions/python$1-torch$2
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        echo "== left out: there is no $python with venv"
        return
    fi
    if [[ ! -e $venv/installed ]]; then
        echo "== installing torch $2 with $("$python" --version) into $venv"
        "$python" -m venv "$venv"
        "$venv/bin/pip" install --quiet "torch==$2" PyYAML safetensors tensorboard numpy pytest pytest-timeout
        touch "$venv/installed"
    fi
    echo "== pytest with $("$venv/bin/python" --version), torch $2"
    "$venv/bin/python" -m pytest --quiet -p no:cacheprovider tests/core tests/exchange tests/job
}

if (($# == 2)); then
    test_with "$1" "$2"
else
    test_with 3.11 "$OLDEST.0"
    test_with 3.12 "$NEWEST"
fi
