#!/usr/bin/env bash
# Control of item 2: all_reduce with the schedule that the codistilled models got. The paper does not have it.
#
# Cost: 16 V100 for 2.5 hours (as all_reduce.sh).
# Should reach: unknown. If it gains as much as codistillation does, the adjustment is better and not the method.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
all_reduce all_reduce_adjusted "${ADJUSTED[@]}"
