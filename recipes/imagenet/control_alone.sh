#!/usr/bin/env bash
# Control of items 1 and 2: the same two models with the same work, without the term. The paper does not have it.
#
# Each is one model alone on 8 GPUs for 45 epochs; together they are an ensemble of independent models.
# Cost: 16 V100 for 2.5 hours each (as all_reduce.sh).
# Should reach: unknown; what codistilled models have more than these is what they learned from each other.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
codistill alone "${OUT_OF_BOX[@]}" --codistill-alpha 0
codistill alone_adjusted "${ADJUSTED[@]}" --codistill-alpha 0
