#!/usr/bin/env bash
# Two codistilled Transformers translate English into German, two codistilled residual nets classify CIFAR-10.
#
#   bash recipes/quickstart.sh
#
# Needs Linux, Python 3.11 or 3.12 and a network; no root, no GPU. Installs into .venv (5.5 GB, 2 to 10 minutes,
# once), then takes about 13 minutes on 2 cores. Ends with a table; the same is in runs/quickstart/summary.json
# and the curves in runs/quickstart/curves.png. Should reach at least 12 BLEU (copying the source: 3.8) and 70 % top-1.
# A second run goes on from where the first one ended, also in the downloads; remove runs/quickstart to train again.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$ROOT/recipes/lib/venv.sh"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # one core a rank
RUN=$ROOT/runs/quickstart
DATA=$RUN/data-bin
TORCHRUN=("$VENV/bin/torchrun" --standalone --nproc-per-node 2)

# 1.2 M parameters. Tried against it, all slower to learn: dropout 0.1 with post-norm, and rates of 1.8e-3 and 6e-3.
# The burn-in lets each model learn something before it teaches: 0.4 lower NLL a token after 600 updates.
TRANSLATION=(
    "${TORCHRUN[@]}" "$VENV/bin/fairseq-train" "$DATA" --user-dir "$ROOT/codistill_ext"
    --criterion codistill_label_smoothed_ce --label-smoothing 0.1
    --codistill-models 2 --codistill-burn-in 600
    --arch transformer --share-all-embeddings --dropout 0
    --encoder-layers 2 --encoder-embed-dim 128 --encoder-ffn-embed-dim 512 --encoder-attention-heads 4
    --decoder-layers 2 --decoder-embed-dim 128 --decoder-ffn-embed-dim 512 --decoder-attention-heads 4
    --encoder-normalize-before --decoder-normalize-before
    --optimizer adam --adam-betas '(0.9, 0.98)' --lr 3e-3 --max-tokens 1200 --max-update 1500
    --lr-scheduler polynomial_decay --warmup-updates 200 --total-num-update 1500
    --required-batch-size-multiple 1 --num-workers 0 --seed 1 --cpu
    --best-checkpoint-metric nll_loss --no-epoch-checkpoints
    --log-format simple --log-interval 100 --save-dir "$RUN/translation"
)
VISION=(
    "${TORCHRUN[@]}" -m vision.train --dataset cifar10 --model resnet8_stride2 --codistill-models 2
    --batch-size 64 --epochs 4 --lr 0.1 --lr-scheduler cosineannealinglr --lr-warmup-epochs 1 --lr-warmup-decay 0.1
    --weight-decay 5e-4 --amp --channels-last --device cpu
    --output-dir "$RUN/vision"
)

# is_trained NAME COMMAND...: whether an earlier start finished it.
is_trained() {
    [[ -f $RUN/$1/seconds && $(cat "$RUN/$1/command" 2>/dev/null) == "${*:2}" ]]
}

# train NAME COMMAND...: runs it once; its output goes to RUN/NAME/log, its seconds to RUN/NAME/seconds.
train() {
    local name=$1 directory=$RUN/$1 start=$SECONDS
    shift
    if is_trained "$name" "$@"; then
        echo "== $name: using the run in $directory (remove it to train again)"
        return
    fi
    rm -rf "$directory"
    mkdir -p "$directory"
    echo "== $name: training two models, 4 to 8 minutes; watch $directory/log"
    echo "$*" >"$directory/command"
    if ! (cd "$ROOT" && "$@" >"$directory/log" 2>&1); then
        tail -n 20 "$directory/log" >&2
        stop "$name failed; all of its output is in $directory/log"
    fi
    echo "$((SECONDS - start))" >"$directory/seconds"
}

# measure OUTPUT MODULE CHECKPOINT[:CHECKPOINT]: what a module of translation/ says about checkpoints, once.
measure() {
    local output=$RUN/translation/$1.json
    [[ -f $output ]] && return
    echo "== translation: $1, half a minute"
    (cd "$ROOT" && "$VENV/bin/python" -m "translation.$2" "$DATA" --path "$3" >"$output.partial" 2>>"$RUN/translation/log")
    mv "$output.partial" "$output"
}

# Whatever comes over the network comes before anything is trained.
make_venv
if ! is_trained vision "${VISION[@]}"; then
    echo "== data: CIFAR-10"
    (cd "$ROOT" && "$VENV/bin/python" -m vision.cifar10)
fi
echo "== data: the shipped English-German corpus, pairs of up to 16 words"
(cd "$ROOT" && "$VENV/bin/python" -m translation.prepare --dest "$DATA" --vocab-size 2000 --max-words 16)
train translation "${TRANSLATION[@]}"
MODEL0=$RUN/translation/model0/checkpoint_best.pt
MODEL1=$RUN/translation/model1/checkpoint_best.pt
measure score-model0 score "$MODEL0"
measure score-model1 score "$MODEL1"
measure score-ensemble score "$MODEL0:$MODEL1"
measure agreement agreement "$MODEL0:$MODEL1"
train vision "${VISION[@]}"
echo "== result"
cd "$ROOT"
"$VENV/bin/python" -m recipes.quickstart_report "$RUN"
