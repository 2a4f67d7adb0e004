#!/usr/bin/env bash
# Item 2's other question: how much of it is only less weight decay? Constant decays, the same for both.
#
# Cost: 3 times 16 V100 for 2.5 and for 3.3 hours (as all_reduce.sh and out_of_box.sh). Should reach: unknown.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
for factor in 0.1 0.3 2; do
    all_reduce decay_x${factor}_all_reduce "${OUT_OF_BOX[@]}" --weight-decay "$(times $factor "$DECAY")"
    codistill decay_x${factor}_codistilled "${OUT_OF_BOX[@]}" --weight-decay "$(times $factor "$DECAY")"
done
