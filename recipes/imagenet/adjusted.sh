#!/usr/bin/env bash
# Item 2: with less and less weight decay, and later milestones, two codistilled models are as good as all_reduce.
#
# Cost: 16 V100 for 3.3 hours (as out_of_box.sh).
# Should reach: 75.9 % top-1 with ResNet-50 (all_reduce 76.1 %); slightly more than all_reduce with ResNeXt-101
# [paper, talk]. Controls: control_*.sh. The rate is 0.1 without a warm-up, the preset's for 256 images; the paper's 2.5
# epochs of warm-up from 0.1 go with 0.2, which it found as good: rate_x2_codistilled of learning_rate.sh.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
codistill codistilled_adjusted "${ADJUSTED[@]}"
