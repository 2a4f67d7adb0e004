#!/usr/bin/env bash
# Item 4: with a cosine schedule and constant weight decay the final accuracies are very close.
#
# Cost: 16 V100 for 2.5, 3.3 and 2.5 hours (as all_reduce.sh and out_of_box.sh).
# Should show: codistilled and all_reduce models very close, with ResNet-50 and ResNeXt-101 [paper, without figures].
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
COSINE=(--lr-scheduler cosineannealinglr --weight-decay "$DECAY")
all_reduce cosine_all_reduce "${COSINE[@]}"
codistill cosine_codistilled "${COSINE[@]}"
codistill cosine_alone "${COSINE[@]}" --codistill-alpha 0
