#!/usr/bin/env bash
# Two codistilled Transformer-big on the GPUs and for the updates of all_reduce: out of the box, and regularised less.
#
#   NNODES=2 HEAD=host:29500 bash recipes/wmt16_en_de/codistill.sh                 on each of two nodes with 8 GPUs
#   sbatch recipes/lib/translation.sbatch recipes/wmt16_en_de/codistill.sh
#   BUDGET=equal-epochs ONLY=codistilled_equal_epochs bash ...                     as in earlier work: twice the updates
#
# Cost: 16 V100 for 15 hours each by checkpoints (11 and a third more for the forward pass of the peer), 11 by
# predictions and alone (computed). Not run by us.
# Should reach: about the validation NLL of all_reduce once regularisation is lowered [paper, talk, without figures].
# alone is the control: the same two models without the term.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
codistill codistilled
codistill codistilled_lowered "${LOWERED[@]}"
codistill codistilled_less_smoothing "${LESS_SMOOTHING[@]}"
codistill codistilled_less_dropout "${LESS_DROPOUT[@]}"
codistill alone --codistill-alpha 0
codistill alone_lowered "${LOWERED[@]}" --codistill-alpha 0
EXCHANGE=("${TOP_64[@]}")
codistill predictions_top_64
codistill predictions_top_64_lowered "${LOWERED[@]}"
