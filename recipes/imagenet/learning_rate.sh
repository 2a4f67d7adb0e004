#!/usr/bin/env bash
# Item 6: base learning rate 0.1 or 0.2 makes no difference, higher hurts.
#
# Factors of the main runs' rate, which are all_reduce.sh and adjusted.sh.
# Cost: 3 times 16 V100 for 2.5 and for 3.3 hours (as all_reduce.sh and out_of_box.sh).
# Should show: no change from 0.1 to 0.2, less accuracy above [paper].
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# at_rate FACTOR RATE IMAGES: sets AT_RATE. At ImageNet's scale the paper's warm-up begins at 0.1 whatever the rate is: the
# preset's begins at --lr, so rate and warm-up are said in full (IMAGES in a model's update, of Goyal's 256).
at_rate() {
    AT_RATE=(--lr "$(times "$1" "$2")")
    [[ $SCALE == imagenet ]] || return 0
    AT_RATE=(--lr-scaling none --lr "$(times "$1" "$2*$3/256")" --lr-warmup-epochs "$WARM_UP"
        --lr-warmup-decay "$(awk "BEGIN { rate = $1 * $2 * $3 / 256; print (rate > 0.1 ? 0.1 / rate : 1) }")")
}

for factor in 0.5 2 4; do
    at_rate $factor "$RATE" "$IMAGES"
    all_reduce rate_x${factor}_all_reduce "${OUT_OF_BOX[@]}" "${AT_RATE[@]}"
    at_rate $factor "$CODISTILLED_RATE" $((IMAGES / MODELS))
    codistill rate_x${factor}_codistilled "${ADJUSTED[@]}" "${AT_RATE[@]}"
done
