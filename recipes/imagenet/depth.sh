#!/usr/bin/env bash
# A second, deeper network (items 1 and 2), and a pair of both depths.
#
# ResNeXt-101 32x4d; at the small scale a net of 14 layers. The pair is ResNet-50 and ResNet-101; 8 and 14 layers.
# Cost: 16 V100 for 5, 5, 6.7, 6.7 and 5 hours (twice the operations a picture, 8.0 against 4.1 billion: computed), and 5.6 for the
# pair, whose shallow model waits for the deep one (7.8 billion).
# Should reach: ResNeXt-101 slightly above all_reduce [paper]; 21.05 % error of all_reduce in tensorpack's public table.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
all_reduce deep_all_reduce "${OUT_OF_BOX[@]}" --model "$DEEP"
all_reduce deep_all_reduce_adjusted "${ADJUSTED[@]}" --model "$DEEP"
codistill deep_codistilled "${OUT_OF_BOX[@]}" --model "$DEEP"
codistill deep_codistilled_adjusted "${ADJUSTED[@]}" --model "$DEEP"
codistill deep_alone_adjusted "${ADJUSTED[@]}" --model "$DEEP" --codistill-alpha 0
codistill two_depths "${ADJUSTED[@]}" --codistill-settings "recipes/imagenet/two_depths_$SCALE.yaml"
