#!/usr/bin/env bash
# Item 6: base learning rate 0.1 or 0.2 makes no difference, higher hurts.
#
# Factors of the main runs' rate, which are all_reduce.sh and adjusted.sh.
# Cost: 3 times 16 V100 for 2.5 and for 3.3 hours (as all_reduce.sh and out_of_box.sh).
# Should show: no change from 0.1 to 0.2, less accuracy above [paper].
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
for factor in 0.5 2 4; do
    all_reduce rate_x${factor}_all_reduce "${OUT_OF_BOX[@]}" --lr "$(times $factor "$RATE")"
    codistill rate_x${factor}_codistilled "${ADJUSTED[@]}" --lr "$(times $factor "$CODISTILLED_RATE")"
done
