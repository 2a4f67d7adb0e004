# Sourced by the recipes in this directory: their settings. What else a user may set: recipes/lib/translation.sh.
#
#   ARCH=transformer_vaswani_wmt_en_de_big     another model of fairseq
#   PRECISION=--fp16                           empty without a GPU (EXTRA='--cpu')
#   BATCHES=8 LR=5e-4                          [ott] without large batches
cd "$(dirname "${BASH_SOURCE[0]}")/../.." # so that paths, if they are relative, are of the checkout
export PATH=$PWD/.venv/bin:$PATH PYTHONPATH=$PWD
: "${RUNS:=runs/wmt16_en_de}" "${DATA:=data-bin/wmt16_en_de}" "${PER_NODE:=8}"
: "${ARCH:=transformer_vaswani_wmt_en_de_big}" "${PRECISION=--fp16}"

# [ott] with batches of 128 GPUs: 3584 tokens on each, of which 16 GPUs accumulate 8. How many updates is not in
# fairseq's example: their 85 minutes on 128 GPUs are 26,000 at the speed of their table 1 (9.7 thousand in 32 minutes).
: "${UPDATES:=26000}" "${BATCHES:=128}" "${TOKENS:=3584}" "${LR:=1e-3}" "${PERIOD:=2500}"
SMOOTHING=0.1 DROPOUT=0.3 LEAST_DROPOUT=0.1
BASE=(
    --arch "$ARCH" --share-all-embeddings --dropout "$DROPOUT" --weight-decay 0.0 --label-smoothing "$SMOOTHING"
    --optimizer adam --adam-betas "(0.9, 0.98)" --clip-norm 0.0
    --lr-scheduler inverse_sqrt --warmup-updates 4000 --warmup-init-lr 1e-07
    $PRECISION --keep-last-epochs 10 --log-format simple --log-interval 100
)
of_length() {
    SCHEDULE=()
}
# Whole predictions of 32768 pieces are 470 MB an update, so by predictions only the largest 64. The period is the paper's
# of ImageNet, where it is 1.1 % of a run and here a tenth; of translation none is known. PERIOD=290 is the same share.
TOP_64=(--codistill-exchange predictions --codistill-encoding topk --codistill-topk 64)
EVALUATION=() # on one GPU, afterwards: evaluate.sh
source recipes/lib/translation.sh
