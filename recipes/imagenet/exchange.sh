#!/usr/bin/env bash
# Ours: other ways to exchange, against adjusted.sh, which has checkpoints and independent data.
#
# Predictions each update; of every 2nd, 4th and 8th update; the largest k of them; checkpoints with the same or with
# disjoint data; and model 1 only teaching.
# Cost: 16 V100, 3 times for 3.3 hours with checkpoints, 7 times for 2.5 with predictions (no second forward pass: computed).
# Should reach: unknown. Anil et al. (2018) found disjoint data clearly better than the same.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
codistill checkpoints_coordinated "${ADJUSTED[@]}" --codistill-data coordinated
codistill checkpoints_disjoint "${ADJUSTED[@]}" --codistill-data disjoint
codistill one_way "${ADJUSTED[@]}" --codistill-topology '0<-1'
EXCHANGE=(--codistill-exchange predictions)
codistill predictions "${ADJUSTED[@]}"
codistill predictions_out_of_box "${OUT_OF_BOX[@]}"
for every in 2 4 8; do
    codistill predictions_every_$every "${ADJUSTED[@]}" --codistill-distill-every $every
done
for k in $TOPK; do
    codistill predictions_top_$k "${ADJUSTED[@]}" --codistill-encoding topk --codistill-topk "$k"
done
