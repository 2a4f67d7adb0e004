#!/usr/bin/env bash
# Item 1: two codistilled models with all_reduce's schedule and weight decay are over-regularised.
#
# The rate follows the batch of a model, which is half of all_reduce's; with it goes the preset's warm-up (adjusted.sh).
# Batch 256 and 45 epochs a model on 8 GPUs each: as many GPUs and updates as all_reduce.sh.
# Cost: 16 V100 for 3.3 hours (all_reduce.sh and a third more, for the forward pass of the peer: computed).
# Should show: higher training loss than all_reduce, about 2 points lower top-1 (so about 74 %), weights closer to
# their initial values [paper, talk]. Compare with: python -m recipes.tables runs/imagenet
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
codistill codistilled "${OUT_OF_BOX[@]}"
