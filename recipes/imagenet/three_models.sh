#!/usr/bin/env bash
# Ours: three models, each with the work that it has among two; all_reduce on as many workers for as long.
#
#   DATA=/data/imagenet NNODES=3 HEAD=node0:29500 bash recipes/imagenet/three_models.sh   (on every node)
#   DATA=/data/imagenet bash recipes/imagenet/three_models.sh                             6 GPUs, whose batches accumulate
#
# Cost: 24 V100 for 2.5, 2.5, 4.2 and 2.5 hours (two thirds more than all_reduce.sh for two peers: computed).
# Should show: Zhang et al. (2018) found larger cohorts better, on other data sets.
NODES=${NNODES:-1}
[[ ${SCALE:-} != cifar10 ]] || : "${PER_NODE:=3}"
: "${PER_NODE:=$((NODES % 3 ? 6 : 8))}"
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
grow 3
all_reduce n3_all_reduce "${OUT_OF_BOX[@]}" --lr "$(for_batch 1.5 "$RATE")"
all_reduce n3_all_reduce_adjusted "${ADJUSTED[@]}" --lr "$(for_batch 1.5 "$RATE")"
codistill n3_codistilled "${ADJUSTED[@]}"
codistill n3_alone "${ADJUSTED[@]}" --codistill-alpha 0
