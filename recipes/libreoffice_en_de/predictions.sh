#!/usr/bin/env bash
# Ours: predictions of the same mini-batch at every update, whole or the largest 64, in place of checkpoints.
#
#   bash recipes/libreoffice_en_de/prepare.sh && bash recipes/libreoffice_en_de/predictions.sh
#
# Cost: 2 CPU cores for 3 to 4 minutes each (by the CPU time of pilots).
# Should show: unknown; both cost no second forward pass, and top 64 fewer bytes.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# Control: checkpoints of models that read the same mini-batches, as those do which exchange predictions.
codistill coordinated_lowered "${LOWERED[@]}" --codistill-data coordinated
for k in 0 64; do
    EXCHANGE=(--codistill-exchange predictions) name=predictions
    ((k == 0)) || EXCHANGE+=(--codistill-encoding topk --codistill-topk $k) name=predictions_top_$k
    codistill $name
    codistill ${name}_lowered "${LOWERED[@]}"
done
