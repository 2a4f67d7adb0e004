# Sourced by the recipes in this directory: their settings. What else a user may set: recipes/lib/translation.sh.
#
#   ARCH=transformer_vaswani_wmt_en_de_big     another model of fairseq
#   PRECISION=--fp16                           empty without a GPU (EXTRA='--cpu')
cd "$(dirname "${BASH_SOURCE[0]}")/../.." # so that paths, if they are relative, are of the checkout
export PATH=$PWD/.venv/bin:$PATH PYTHONPATH=$PWD
: "${RUNS:=runs/iwslt14_de_en}" "${DATA:=data-bin/iwslt14_de_en}" "${PER_NODE:=8}"
: "${ARCH:=transformer_vaswani_wmt_en_de_big}" "${PRECISION=--fp16}"

# Of the paper only the model is known. The optimizer, its schedule without large batches and the regularisation are those
# of Ott et al. for WMT'16; batches, length and period are ours.
: "${UPDATES:=10000}" "${BATCHES:=8}" "${TOKENS:=3584}" "${LR:=5e-4}" "${PERIOD:=500}"
SMOOTHING=0.1 DROPOUT=0.3 LEAST_DROPOUT=0.1
BASE=(
    --arch "$ARCH" --share-all-embeddings --dropout "$DROPOUT" --weight-decay 0.0 --label-smoothing "$SMOOTHING"
    --optimizer adam --adam-betas "(0.9, 0.98)" --clip-norm 0.0 --lr-scheduler inverse_sqrt --warmup-updates 4000
    --warmup-init-lr 1e-07 $PRECISION --best-checkpoint-metric nll_loss --keep-last-epochs 10 --log-format simple --log-interval 100
)
of_length() {
    SCHEDULE=()
}
PREDICTIONS=(--codistill-exchange predictions) # of 10,000 pieces: 143 MB an update
EVALUATION=() # on one GPU, afterwards: evaluate.sh
source recipes/lib/translation.sh
