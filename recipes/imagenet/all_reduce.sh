#!/usr/bin/env bash
# The yardstick: plain data parallelism, 16 GPUs with 32 images each, batch 512, 90 epochs.
#
#   DATA=/data/imagenet NNODES=2 HEAD=host:29500 bash recipes/imagenet/all_reduce.sh    (on every node)
#   SCALE=cifar10 bash recipes/imagenet/all_reduce.sh
#
# Cost: 16 V100 for at least 2.5 hours (computed from NVIDIA's 5 hours on 8, at 8322 images a second with 256 images a
# GPU: README.md, "What it costs"); with SCALE=cifar10 2 cores for 4 minutes.
# Should reach: 76.1 % top-1 (the paper's own all_reduce); Goyal et al. have 23.48 +- 0.09 % error at batch 512, as the
# median of the last 5 epochs over 5 runs. MODEL=resnext101_32x4d RUNS=runs/resnext: 21.05 % error in tensorpack's public table.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
all_reduce all_reduce "${OUT_OF_BOX[@]}"
