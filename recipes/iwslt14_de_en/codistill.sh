#!/usr/bin/env bash
# Two codistilled Transformer-big where one overfits: IWSLT'14 De-En, on the GPUs and for the updates of all_reduce.
#
#   bash recipes/iwslt14_de_en/codistill.sh                                        on one node with 8 GPUs
#   sbatch --nodes 1 recipes/lib/translation.sbatch recipes/iwslt14_de_en/codistill.sh
#
# Cost: 8 V100 for 50 minutes each by checkpoints (a third more than allreduce.sh, for the forward pass of the peer), 40
# by predictions and alone (computed). Not run by us.
# Should reach: validation NLL 2.31, all_reduce 2.37 [paper]. alone is the control: the same models without the term.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
codistill codistilled
codistill codistilled_lowered "${LOWERED[@]}"
codistill alone --codistill-alpha 0
codistill alone_lowered "${LOWERED[@]}" --codistill-alpha 0
EXCHANGE=("${PREDICTIONS[@]}")
codistill predictions
codistill predictions_lowered "${LOWERED[@]}"
