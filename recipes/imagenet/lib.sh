# Sourced by the recipes in this directory: what they have in common. A recipe says what to train,
#
#   all_reduce NAME OPTIONS...     one model on all workers
#   codistill NAME OPTIONS...      MODELS models (2) that share the workers, and the work of one
#
# with the options of vision.train, of which a later one replaces an earlier one. What a user may set:
#
#   SCALE=imagenet DATA=DIR        the paper's scale (the default); DIR has train/CLASS/* and val/CLASS/*
#   SCALE=cifar10                  the same recipe on two CPU cores
#   SEED=0                         of weights and data
#   ONLY='NAME...'                 not all of the recipe's runs
#   EXTRA='OPTIONS'                more options of vision.train, such as '--max-updates 100'
#   RUNS=DIR                       a directory for each run goes there; a run that was interrupted continues
#   NNODES=2 PER_NODE=8 HEAD=HOST:PORT   nodes, processes on each, and where they meet; start the recipe on every node,
#                                  or slurm.sbatch. The images of an update stay the same, so the processes must divide them
#   MODEL=resnet50                 another network of vision.train (and another RUNS); EPOCHS=90: of all models together;
#                                  FRACTION=1/8: of the training data
#   AT_ONCE=32                     images that a GPU takes at once, at most; more of an update are accumulated
#   LIST=1                         print the runs, a line of JSON each, instead of training
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." # so that paths, if they are relative, are of the checkout
export PATH=$PWD/.venv/bin:$PATH PYTHONPATH=$PWD
SCALE=${SCALE:-imagenet} SEED=${SEED:-0} MODELS=${MODELS:-2} NNODES=${NNODES:-1} RUNS=${RUNS:-runs/${SCALE:-imagenet}}

TORCHRUN=${TORCHRUN:-torchrun}
source recipes/lib/launch.sh
INTERRUPTED=75
# SLURM signals everybody, but it is the trainer that has something to save. A trap of ours lets bash wait for it.
trap '' USR1
trap 'TOLD_TO_LEAVE=1' TERM

case $SCALE in
imagenet)
    [[ -n ${DATA:-} || -n ${LIST:-} ]] || refuse "set DATA=DIR to ImageNet, or SCALE=cifar10"
    : "${PER_NODE:=8}" "${AT_ONCE:=32}" "${FRACTION:=1/1}" "${EPOCHS:=90}" "${MODEL:=resnet50}"
    DEEP=resnext101_32x4d TOPK='8 64'
    IMAGES=512                               # of an update on all workers: 16 GPUs with 32 each
    RATE=0.1 CODISTILLED_RATE=0.1            # for 256 images: the preset scales it by a model's batch, with a warm-up above
    DECAY=1e-4 ADJUSTED_DECAY=1e-4,1e-5,0
    PERIOD=2500                              # of 225,000 updates
    WARM_UP=5                                # epochs, the preset's
    BASE=(--preset goyal --amp --amp-dtype float16 --channels-last) # V100s have no bfloat16
    PLACE=(--data-path "${DATA:-DATA}")
    ;;
cifar10)
    : "${PER_NODE:=2}" "${AT_ONCE:=512}" "${FRACTION:=1/8}" "${EPOCHS:=20}" "${MODEL:=resnet8_stride2}"
    DEEP=resnet14_stride2 TOPK='1 2 4'
    IMAGES=128
    RATE=0.4 CODISTILLED_RATE=0.2            # by pilots and a model's batch: results/cifar10/plan.md
    DECAY=5e-4 ADJUSTED_DECAY=5e-4,5e-5,0
    PERIOD=87                                # of 7,820 updates
    WARM_UP=1
    PLACE=()
    BASE=(--dataset cifar10 --device cpu --amp --channels-last --codistill-timeout 86400 # a laptop may sleep
        --lr-warmup-epochs $WARM_UP --lr-warmup-decay 0.1)
    source recipes/lib/cpu.sh
    ;;
*)
    refuse "SCALE is imagenet or cifar10, not $SCALE"
    ;;
esac

# The two schedules that the paper compares, as shares of the run: of the 45 epochs of a codistilled model, the rate
# decays at 15, 30 and 40, or at 18, 38 and 44 with less and less weight decay.
OUT_OF_BOX=(--lr-milestones 15of45 30of45 40of45 --weight-decay "$DECAY")
ADJUSTED=(--lr-milestones 18of45 38of45 44of45 --weight-decay "$ADJUSTED_DECAY")
EXCHANGE=(--codistill-exchange checkpoints --codistill-period "$PERIOD")

all_reduce() {
    train "$1" --lr "$RATE" "${@:2}"
}

codistill() {
    train "$1" --lr "$CODISTILLED_RATE" --codistill-models "$MODELS" --budget equal-updates "${EXCHANGE[@]}" "${@:2}"
}

check_models() {
    ((NNODES * PER_NODE % MODELS == 0)) || refuse "$MODELS models cannot share $((NNODES * PER_NODE)) processes evenly:" \
        "choose a number of them that $MODELS divides (NNODES, PER_NODE)"
}

# A number times another, as awk prints it: times 0.5 2500 is 1250.
times() {
    awk "BEGIN { print $1 * $2 }"
}

# The rate for a batch of so many times the images of the main runs.
for_batch() {
    [[ $SCALE == imagenet ]] && echo "$2" || times "$1" "$2"
}

# grow N: n models with as many workers and updates each as it has among two, so with more images and epochs in all. The
# warm-up keeps its share of the run.
grow() {
    MODELS=$1 IMAGES=$((IMAGES * $1 / 2)) EPOCHS=$(times "$EPOCHS" "$1/2")
    BASE+=(--lr-warmup-epochs "$(times "$WARM_UP" "$1/2")")
    check_models
}

# train NAME OPTIONS...
train() {
    local name=$1 processes=$((NNODES * PER_NODE)) share batch failed=0 directory=$RUNS/$1-s$SEED command
    is_wanted "$name" || return 0
    [[ -z ${TOLD_TO_LEAVE:-} ]] || exit "$INTERRUPTED"
    [[ " ${*:2} " != *" --codistill-models "* ]] || check_models
    meet "$name"
    ((IMAGES % processes == 0)) || refuse "$name: $processes processes cannot share the $IMAGES images of an update" \
        "evenly: choose a number of them that divides it (NNODES, PER_NODE)"
    share=$((IMAGES / processes))
    batch=$((share < AT_ONCE ? share : AT_ONCE))
    while ((share % batch)); do batch=$((batch - 1)); done
    command=("$TORCHRUN" "${MEET[@]}" --nproc-per-node "$PER_NODE" -m vision.train "${BASE[@]}" "${PLACE[@]}"
        --model "$MODEL" --epochs "$EPOCHS" --train-fraction "$FRACTION" --batch-size "$batch"
        --accumulate "$((share / batch))" "${@:2}" --seed "$SEED" --output-dir "$directory" --resume auto ${EXTRA:-})
    IDENTITY=("${BASE[@]}" --model "$MODEL" --epochs "$EPOCHS" --train-fraction "$FRACTION" --images-an-update "$IMAGES"
        "${@:2}" --seed "$SEED" ${EXTRA:-})
    launch "$name" "$processes" "$directory" "${command[@]}" || failed=$?
    # The trainer saves and leaves when it is told to; the next runs of this recipe are then not to begin. After SIGTERM
    # torchrun ends with 1, as it does after errors.
    ((failed == 0)) || [[ -n ${TOLD_TO_LEAVE:-} ]] || exit "$failed"
    [[ -n ${LIST:-} || -f $directory/summary.json ]] || exit "$INTERRUPTED"
}
