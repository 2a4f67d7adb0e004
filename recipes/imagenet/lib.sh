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
#   NNODES=2 PER_NODE=8 HEAD=HOST  nodes, processes on each, and where they meet; start the recipe on every node, or
#                                  slurm.sbatch. With more or less than 16 GPUs the images of an update stay the same.
#   MODEL=resnet50                 another network of vision.train; EPOCHS=90: of all models together; FRACTION=1/8
#   AT_ONCE=32                     images that a GPU takes at once; more of an update are accumulated
#   LIST=1                         print the runs, a line of JSON each, instead of training
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." # so that paths, if they are relative, are of the checkout
export PATH=$PWD/.venv/bin:$PATH PYTHONPATH=$PWD
SCALE=${SCALE:-imagenet} SEED=${SEED:-0} MODELS=${MODELS:-2} NNODES=${NNODES:-1} RUNS=${RUNS:-runs/${SCALE:-imagenet}}

TORCHRUN=${TORCHRUN:-torchrun}
source recipes/lib/launch.sh
INTERRUPTED=75
trap '' USR1 # SLURM sends it to everybody, but it is for the trainer, which asks for it

case $SCALE in
imagenet)
    [[ -n ${DATA:-} || -n ${LIST:-} ]] || { echo "set DATA=DIR to ImageNet, or SCALE=cifar10" >&2 && exit 2; }
    : "${PER_NODE:=8}" "${AT_ONCE:=32}" "${FRACTION:=1/1}" "${EPOCHS:=90}" "${MODEL:=resnet50}"
    DEEP=resnext101_32x4d TOPK='8 64'
    IMAGES=512                               # of an update on all workers: 16 GPUs with 32 each
    RATE=0.1 CODISTILLED_RATE=0.1            # for 256 images: the preset scales it by a model's batch, with a warm-up above
    DECAY=1e-4 ADJUSTED_DECAY=1e-4,1e-5,0
    PERIOD=2500                              # of 225,000 updates
    BASE=(--preset goyal --data-path "${DATA:-DATA}" --amp --channels-last)
    ;;
cifar10)
    : "${PER_NODE:=2}" "${AT_ONCE:=512}" "${FRACTION:=1/8}" "${EPOCHS:=20}" "${MODEL:=resnet8_stride2}"
    DEEP=resnet14_stride2 TOPK='1 2 4'
    IMAGES=128
    RATE=0.4 CODISTILLED_RATE=0.2            # by pilots and a model's batch: results/cifar10/plan.md
    DECAY=5e-4 ADJUSTED_DECAY=5e-4,5e-5,0
    PERIOD=87                                # of 7,820 updates
    BASE=(--dataset cifar10 --device cpu --amp --channels-last --codistill-timeout 86400 # a laptop may sleep
        --lr-warmup-epochs 1 --lr-warmup-decay 0.1)
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    ;;
*)
    echo "SCALE is imagenet or cifar10, not $SCALE" >&2
    exit 2
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

# A number times another, as awk prints it: times 0.5 2500 is 1250.
times() {
    awk "BEGIN { print $1 * $2 }"
}

# The rate for a batch of so many times the images of the main runs.
for_batch() {
    [[ $SCALE == imagenet ]] && echo "$2" || times "$1" "$2"
}

# train NAME OPTIONS...
train() {
    local name=$1 share=$((IMAGES / (NNODES * PER_NODE))) batch directory=$RUNS/$1-s$SEED command
    is_wanted "$name" || return 0
    meet "$name"
    batch=$((share < AT_ONCE ? share : AT_ONCE))
    command=("$TORCHRUN" "${MEET[@]}" --nproc-per-node "$PER_NODE" -m vision.train "${BASE[@]}"
        --model "$MODEL" --epochs "$EPOCHS" --train-fraction "$FRACTION" --batch-size "$batch"
        --accumulate "$((share / batch))" "${@:2}" --seed "$SEED" --output-dir "$directory" --resume auto ${EXTRA:-})
    launch "$name" $((NNODES * PER_NODE)) "$directory" "${command[@]}"
    # The trainer saves and leaves when it is told to; the next runs of this recipe are then not to begin.
    [[ -n ${LIST:-} || -f $directory/summary.json ]] || exit "$INTERRUPTED"
}
