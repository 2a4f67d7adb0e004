#!/usr/bin/env bash
# Causal language models with FSDP2: one on four ranks, against two on two ranks each that send each other the 64 most
# likely pieces (of 2000) at each position.
#
#   bash recipes/language_model/run.sh [more options of recipes.language_model.train]
#
# Cost: 10 minutes on 2 CPU cores. A second run goes on from where the first one ended.
# Should show: a perplexity on the test text of 152 (one model), 195 and 195 (two models) and 187 and 192 (the same without
# the term). These runs are short: docs/language-model.md.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
source "$ROOT/recipes/lib/venv.sh"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
make_venv
cd "$ROOT"
RUNS=${RUNS:-runs/language_model}
CODISTILLED=(--codistill-models 2 --codistill-encoding topk --codistill-topk 64)

train() {
    echo "== $1"
    "$VENV/bin/torchrun" --standalone --nproc-per-node 4 -m recipes.language_model.train \
        --output-dir "$RUNS/$1" --text-dir "$RUNS/text" "${@:2}"
}

train all_reduce "$@"
train codistilled "${CODISTILLED[@]}" "$@"
train without_the_term --codistill-models 2 --codistill-alpha 0 "$@"
"$VENV/bin/python" -m recipes.language_model.table "$RUNS"/{all_reduce,codistilled,without_the_term}
