#!/usr/bin/env bash
# Ours: three and four models, each with the work that it has among two; all_reduce on as many workers for as long.
#
# n models have n/2 times the workers of adjusted.sh: 24 and 32 GPUs (16 work too: their batches accumulate).
# Cost: n = 3: 24 V100 for 2.5 and 4.2 hours; n = 4: 32 V100 for 2.5, 3.3, 5 and 2.5 hours (a third more than
# all_reduce.sh for each peer: computed).
# Should show: Zhang et al. (2018) found larger cohorts better, on other data sets.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
TWO=$IMAGES WORK=$EPOCHS
for n in 3 4; do
    [[ $SCALE == imagenet ]] || PER_NODE=$n
    IMAGES=$((TWO * n / 2)) EPOCHS=$(times "$WORK" $n/2)
    all_reduce n${n}_all_reduce "${OUT_OF_BOX[@]}" --lr "$(for_batch $n/2 "$RATE")"
    MODELS=$n codistill n${n}_codistilled "${ADJUSTED[@]}"
    [[ $n == 4 ]] || continue
    MODELS=2 codistill n4_two_codistilled "${ADJUSTED[@]}" --lr "$(for_batch 2 "$CODISTILLED_RATE")"
    MODELS=4 codistill n4_alone "${ADJUSTED[@]}" --codistill-alpha 0
done
