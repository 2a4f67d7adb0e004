#!/usr/bin/env bash
# Item 4: with a cosine schedule the final accuracies are very close. Weight decay is constant here; the paper's is not known.
#
# Cost: 16 V100 for 2.5, 3.3 and 2.5 hours (as all_reduce.sh and out_of_box.sh), with ResNeXt-101 twice as long.
# Should show: codistilled and all_reduce models very close, with ResNet-50 and ResNeXt-101 [paper; its numbers are unknown to us].
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
COSINE=(--lr-scheduler cosineannealinglr --weight-decay "$DECAY")
for deep in '' deep_; do
    [[ -z $deep ]] || COSINE+=(--model "$DEEP")
    all_reduce cosine_${deep}all_reduce "${COSINE[@]}"
    codistill cosine_${deep}codistilled "${COSINE[@]}"
    codistill cosine_${deep}alone "${COSINE[@]}" --codistill-alpha 0
done
