# Sourced by the lib.sh of each translation recipe, behind its settings: what they have in common. A recipe says
#
#   all_reduce NAME OPTIONS...     one model on all workers
#   codistill NAME OPTIONS...      MODELS models (2) that share the workers
#
# with the options of fairseq-train and of the method, of which a later one replaces an earlier one. A user may set:
#
#   BUDGET=equal-updates           every worker makes UPDATES updates: B1 with all_reduce, the paper's B2 codistilled
#   BUDGET=equal-epochs            codistilled models make MODELS times as many, as all_reduce would need on the workers
#                                  of one of them: B2 as in earlier work
#   BUDGET=half                    all_reduce on half of the workers, with twice the updates of half the batch: A
#   SEED=1                         of weights, dropout and data order (fairseq's default)
#   ONLY='NAME...'                 not all of the recipe's runs (all_reduce_half, codistilled_equal_epochs with BUDGET)
#   EXTRA='OPTIONS'                more options of fairseq-train, such as '--max-update 100'
#   DATA=DIR RUNS=DIR              the data-bin; a directory for each run goes into RUNS. What was interrupted continues
#   NNODES=1 PER_NODE=8 HEAD=HOST:PORT   nodes, processes on each, and where they meet: start the recipe on every node,
#                                  or recipes/lib/translation.sbatch. The batches of an update stay the same (BATCHES),
#                                  so the processes must divide them
#   UPDATES= BATCHES= TOKENS= LR=  of a worker; of --max-tokens=TOKENS each, in an update of all workers; learning rate
#   CODISTILLED_LR=$LR             of codistilled models, whose batch is smaller; neither it nor the warm-up follows BUDGET
#   LIST=1                         print the runs, a line of JSON each, instead of training
set -euo pipefail
: "${SEED:=1}" "${MODELS:=2}" "${NNODES:=1}" "${BUDGET:=equal-updates}" "${CODISTILLED_LR:=$LR}"
TORCHRUN=${TORCHRUN:-torchrun}
source recipes/lib/launch.sh

EXCHANGE=(--codistill-exchange checkpoints --codistill-period "$PERIOD")
# Explicit regularisation that falls until half of the run. Both are ours: what the paper lowered is not known.
LESS_SMOOTHING=(--codistill-label-smoothing "$SMOOTHING~0@50%")
LESS_DROPOUT=(--codistill-dropout "$DROPOUT~$LEAST_DROPOUT@50%")
LOWERED=("${LESS_SMOOTHING[@]}" "${LESS_DROPOUT[@]}")

case $BUDGET in
equal-updates | equal-epochs | half) ;;
*) refuse "BUDGET is equal-updates, equal-epochs or half, not $BUDGET" ;;
esac

all_reduce() {
    local name=$1 updates=$UPDATES batches=$BATCHES per_node=$PER_NODE
    if [[ $BUDGET == half ]]; then
        ((PER_NODE % 2 == 0)) || refuse "BUDGET=half needs an even PER_NODE, not $PER_NODE"
        name+=_half per_node=$((PER_NODE / 2))
        batches=$((BATCHES / 2)) updates=$((2 * UPDATES))
    fi
    train "$name" "$per_node" "$updates" "$batches" --lr "$LR" "${@:2}"
}

codistill() {
    local name=$1 updates=$UPDATES
    [[ $BUDGET != half ]] || refuse "BUDGET=half is of all_reduce: take equal-updates or equal-epochs"
    [[ $BUDGET != equal-epochs ]] || { name+=_equal_epochs updates=$((MODELS * UPDATES)); }
    train "$name" "$PER_NODE" "$updates" "$BATCHES" --lr "$CODISTILLED_LR" \
        --codistill-models "$MODELS" "${EXCHANGE[@]}" "${@:2}"
}

# train NAME PROCESSES UPDATES BATCHES OPTIONS...: processes of a node; batches of an update of all nodes.
train() {
    local name=$1 workers=$((NNODES * $2)) batches=$4 directory=$RUNS/$1-s$SEED command
    is_wanted "$name" || return 0
    ((batches % workers == 0)) || refuse "$name: $workers processes cannot share the $batches batches of an update evenly:" \
        "choose a number of them that divides it (NNODES, PER_NODE), or another BATCHES"
    meet "$name"
    of_length "$3" # sets SCHEDULE: options that depend on the length of the run
    command=("$TORCHRUN" "${MEET[@]}" --nproc-per-node "$2" -m fairseq_cli.train "$DATA" --user-dir codistill_ext
        --criterion codistill_label_smoothed_ce "${BASE[@]}" --max-tokens "$TOKENS" --update-freq "$((batches / workers))" --max-update "$3"
        "${SCHEDULE[@]}" "${@:5}" --seed "$SEED" --save-dir "$directory" ${EXTRA:-})
    if ((${#EVALUATION[@]})); then
        local ENDED=evaluation/test.json
        command=(bash recipes/lib/evaluated.sh "$directory" "${EVALUATION[@]}" -- "${command[@]}")
    fi
    IDENTITY=("${BASE[@]}" --part "${PART:-1}" --max-tokens "$TOKENS" --batches-an-update "$batches" --max-update "$3"
        "${SCHEDULE[@]}" "${@:5}" --seed "$SEED" ${EXTRA:-})
    launch "$name" "$workers" "$directory" "${command[@]}"
}
