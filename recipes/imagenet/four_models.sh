#!/usr/bin/env bash
# Ours: four models, each with the work that it has among two; all_reduce, and two models, on as many workers for as long.
#
#   DATA=/data/imagenet NNODES=4 HEAD=node0:29500 bash recipes/imagenet/four_models.sh    (on every node)
#   DATA=/data/imagenet bash recipes/imagenet/four_models.sh                              8 GPUs, whose batches accumulate
#
# Cost: 32 V100 for 2.5, 2.5, 5, 2.5 and 3.3 hours (a third more than all_reduce.sh for each peer: computed).
# Should show: Zhang et al. (2018) found larger cohorts better, on other data sets.
[[ ${SCALE:-} != cifar10 ]] || : "${PER_NODE:=4}"
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
grow 4
all_reduce n4_all_reduce "${OUT_OF_BOX[@]}" --lr "$(for_batch 2 "$RATE")"
all_reduce n4_all_reduce_adjusted "${ADJUSTED[@]}" --lr "$(for_batch 2 "$RATE")"
codistill n4_codistilled "${ADJUSTED[@]}"
codistill n4_alone "${ADJUSTED[@]}" --codistill-alpha 0
MODELS=2 codistill n4_two_codistilled "${ADJUSTED[@]}" --lr "$(for_batch 2 "$CODISTILLED_RATE")"
