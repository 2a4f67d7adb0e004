#!/usr/bin/env bash
# What communication costs: synchronous training, codistillation and what else a user would pick, on links that are as slow as a user's.
#
#   sudo bash recipes/communication.sh                    # tables of steps: about 75 minutes on 2 idle cores
#   sudo bash recipes/communication.sh accuracy           # and time to accuracy on CIFAR-10: about 110 minutes
#   bash recipes/communication.sh report                  # results/network/README.md again from the raw files
#
# Linux, root, iproute2. Makes .venv in the checkout, and installs fairscale and torchft into it. Finished measurements in
# results/network/raw are kept: remove a file to measure it again. Let nothing else run meanwhile.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$ROOT/recipes/lib/venv.sh"
export OMP_NUM_THREADS=1

make_venv
cd "$ROOT"
if [[ ${1:-steps} != report ]]; then
    # What they miss is listed in the table with the error.
    "$VENV/bin/python" -m pip install --quiet --no-build-isolation fairscale==0.4.13 torchft-nightly==2026.10.26 ||
        echo "fairscale or torchft cannot be installed here: the table will say so"
fi
exec "$VENV/bin/python" -m recipes.communication "${1:-steps}"
