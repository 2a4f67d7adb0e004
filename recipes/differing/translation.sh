#!/usr/bin/env bash
# Differently trained models: two Transformers of other depth, width and dropout, by checkpoints.
#
#   bash recipes/differing/translation.sh [more options of fairseq-train]
#
# 8 minutes on 2 cores, and a minute more where `bash recipes/quickstart.sh` has not made the data. The paper has no figure
# for it (it is one of the talk's extensions); the control is the same command with `--codistill-alpha 0`. One run ended
# with a validation NLL of 3.61 and 3.91 bits a piece (docs/differing/translation.json): one seed, without the control.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
source "$ROOT/recipes/lib/venv.sh"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
make_venv
cd "$ROOT"
DATA=runs/quickstart/data-bin
"$VENV/bin/python" -m translation.prepare --dest "$DATA" --vocab-size 2000 --max-words 16
exec "$VENV/bin/torchrun" --standalone --nproc-per-node 2 "$VENV/bin/fairseq-train" "$DATA" \
    --user-dir codistill_ext --criterion codistill_label_smoothed_ce --label-smoothing 0.1 \
    --codistill-models 2 --codistill-settings recipes/differing/deep_wide.yaml \
    --codistill-exchange checkpoints --codistill-period 100 \
    --arch transformer --share-all-embeddings --dropout 0 \
    --encoder-layers 2 --encoder-embed-dim 128 --encoder-ffn-embed-dim 512 --encoder-attention-heads 4 \
    --decoder-layers 2 --decoder-embed-dim 128 --decoder-ffn-embed-dim 512 --decoder-attention-heads 4 \
    --encoder-normalize-before --decoder-normalize-before \
    --optimizer adam --adam-betas '(0.9, 0.98)' --lr 3e-3 --max-tokens 1200 --max-update 1500 \
    --lr-scheduler polynomial_decay --warmup-updates 200 --total-num-update 1500 \
    --required-batch-size-multiple 1 --num-workers 0 --cpu --no-epoch-checkpoints \
    --log-format simple --log-interval 100 --save-dir runs/differing/translation "$@"
