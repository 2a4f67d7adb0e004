# Sourced by the recipes in this directory: their settings. What else a user may set: recipes/lib/translation.sh.
#
#   PART=1/8                       1/2, 1/4 or 1/8 of the training pairs (prepare.sh makes a data-bin of each)
#   EVALUATE=                      do not translate and score behind each run
cd "$(dirname "${BASH_SOURCE[0]}")/../.." # so that paths, if they are relative, are of the checkout
export PATH=$PWD/.venv/bin:$PATH PYTHONPATH=$PWD
source recipes/lib/cpu.sh
: "${RUNS:=runs/libreoffice_en_de}" "${ALL_DATA:=runs/libreoffice_en_de/data}" "${PER_NODE:=2}" "${PART:=1}"
DATA=$ALL_DATA/${PART/\//of}

# By pilots: results/libreoffice_en_de/plan.md.
: "${UPDATES:=1600}" "${BATCHES:=2}" "${TOKENS:=500}" "${LR:=3e-3}" "${PERIOD:=80}" "${DROPOUT:=0.1}" "${SMOOTHING:=0.1}"
LEAST_DROPOUT=0
BASE=(
    --arch transformer --share-all-embeddings --dropout "$DROPOUT" --label-smoothing "$SMOOTHING"
    --encoder-layers 2 --encoder-embed-dim 128 --encoder-ffn-embed-dim 512 --encoder-attention-heads 4
    --decoder-layers 2 --decoder-embed-dim 128 --decoder-ffn-embed-dim 512 --decoder-attention-heads 4
    --encoder-normalize-before --decoder-normalize-before --optimizer adam --adam-betas "(0.9, 0.98)"
    --required-batch-size-multiple 1 --num-workers 0 --cpu --best-checkpoint-metric nll_loss --no-epoch-checkpoints
    --validate-interval 1000000 --save-interval 1000000 --keep-interval-updates 3 --log-format simple --log-interval 50
)
of_length() {
    SCHEDULE=(--lr-scheduler polynomial_decay --warmup-updates $(($1 / 8)) --total-num-update "$1"
        --save-interval-updates $(($1 / 16)) --validate-interval-updates $(($1 / 16)))
}
EVALUATION=(--last 3 --cpu)
[[ -n ${EVALUATE-yes} ]] || EVALUATION=()
source recipes/lib/translation.sh
