#!/usr/bin/env bash
# Item 5: 1/k of the training data, as many updates: the fewer the data, the more codistillation gains.
#
# An epoch keeps the length of the full data, so that 90 of them are 90 k passes over the part.
# Cost: for each k 16 V100 for 2.5, 2.5, 3.3, 3.3 and 2.5 hours (as all_reduce.sh and out_of_box.sh).
# Should show: codistilled_adjusted minus all_reduce grows with k [paper; its numbers are unknown to us].
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
MAIN=$FRACTION
for k in 1 2 4 8 16; do
    FRACTION=1/$k
    [[ $FRACTION != "$MAIN" ]] || continue # the recipes of items 1 and 2
    all_reduce data_k${k}_all_reduce "${OUT_OF_BOX[@]}"
    all_reduce data_k${k}_all_reduce_adjusted "${ADJUSTED[@]}"
    codistill data_k${k}_codistilled "${OUT_OF_BOX[@]}"
    codistill data_k${k}_codistilled_adjusted "${ADJUSTED[@]}"
    codistill data_k${k}_alone_adjusted "${ADJUSTED[@]}" --codistill-alpha 0
done
