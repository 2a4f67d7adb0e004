#!/usr/bin/env bash
# Control of item 2: later milestones with constant weight decay are not enough [paper].
#
# Cost: 16 V100 for 3.3 hours (as out_of_box.sh).
# Should reach: less than adjusted.sh [paper]; by how much is unknown to us.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
codistill codistilled_milestones "${ADJUSTED[@]}" --weight-decay "$DECAY"
