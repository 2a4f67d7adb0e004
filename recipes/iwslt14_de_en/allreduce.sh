#!/usr/bin/env bash
# The yardstick: IWSLT'14 De-En with Transformer-big, far too large for it, plain data parallelism on 8 GPUs.
#
#   bash recipes/iwslt14_de_en/allreduce.sh                                        on one node with 8 GPUs
#   sbatch --nodes 1 recipes/lib/translation.sbatch recipes/iwslt14_de_en/allreduce.sh
#
# Cost: 8 V100 for 40 minutes each (computed: 10,000 updates of up to 28,672 tokens, at [ott]'s 16,000 tokens a second
# and V100). Not run by us.
# Should reach: validation NLL 2.37 [paper], probably base 2 as fairseq logs it, of the paper's own pieces.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
all_reduce all_reduce
all_reduce all_reduce_lowered "${LOWERED[@]}"
