#!/usr/bin/env bash
# The yardstick: WMT'16 En-De with Transformer-big as Ott et al. train it, plain data parallelism on 16 GPUs.
# The number of updates is inferred from their minutes (lib.sh), the rest is theirs or of fairseq's example of it.
#
#   NNODES=2 HEAD=host:29500 bash recipes/wmt16_en_de/allreduce.sh                 on each of two nodes with 8 GPUs
#   sbatch recipes/lib/translation.sbatch recipes/wmt16_en_de/allreduce.sh
#   BUDGET=half bash recipes/wmt16_en_de/allreduce.sh                              set-up A: 4 of 8 GPUs, twice the updates
#
# Cost: 16 V100 for 11 hours each (computed: their 85 minutes on 128 V100, if it scales). Not run by us.
# Should reach: 29.29 tokenised BLEU with split compounds, 28.6 sacreBLEU, mean of the last 10 checkpoints [ott].
# all_reduce_lowered is the control of codistill.sh, which the paper does not show.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
all_reduce all_reduce
all_reduce all_reduce_lowered "${LOWERED[@]}"
