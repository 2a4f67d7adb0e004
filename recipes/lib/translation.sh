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
#   ONLY='NAME...'                 not all of the recipe's runs
#   EXTRA='OPTIONS'                more options of fairseq-train, such as '--max-update 100'
#   DATA=DIR RUNS=DIR              the data-bin; a directory for each run goes into RUNS. What was interrupted continues
#   NNODES=1 PER_NODE=8 HEAD=HOST:PORT   nodes, processes on each, and where they meet: start the recipe on every node,
#                                  or recipes/lib/translation.sbatch. The batches of an update stay the same (BATCHES)
#   UPDATES= BATCHES= TOKENS= LR=  of a worker; of --max-tokens=TOKENS each, in an update of all workers; learning rate
#   LIST=1                         print the runs, a line of JSON each, instead of training
set -euo pipefail
: "${SEED:=1}" "${MODELS:=2}" "${NNODES:=1}" "${BUDGET:=equal-updates}" "${CODISTILLED_LR:=$LR}"
TORCHRUN=${TORCHRUN:-torchrun}
source recipes/lib/launch.sh

EXCHANGE=(--codistill-exchange checkpoints --codistill-period "$PERIOD")
# Explicit regularisation that goes away over the run. Both are ours: what the paper lowered is not known.
LESS_SMOOTHING=(--codistill-label-smoothing "$SMOOTHING~0@50%")
LESS_DROPOUT=(--codistill-dropout "$DROPOUT~$LEAST_DROPOUT@50%")
LOWERED=("${LESS_SMOOTHING[@]}" "${LESS_DROPOUT[@]}")

case $BUDGET in
equal-updates | equal-epochs | half) ;;
*) echo "BUDGET is equal-updates, equal-epochs or half, not $BUDGET" >&2 && exit 2 ;;
esac

all_reduce() {
    local name=$1 workers=$((NNODES * PER_NODE)) updates=$UPDATES batches=$BATCHES per_node=$PER_NODE
    if [[ $BUDGET == half ]]; then
        ((PER_NODE % 2 == 0)) || { echo "BUDGET=half needs an even PER_NODE, not $PER_NODE" >&2 && exit 2; }
        name+=_half per_node=$((PER_NODE / 2)) workers=$((workers / 2))
        batches=$((BATCHES / 2)) updates=$((2 * UPDATES))
    fi
    train "$name" "$per_node" "$updates" "$((batches > workers ? batches / workers : 1))" --lr "$LR" "${@:2}"
}

codistill() {
    local name=$1 workers=$((NNODES * PER_NODE)) updates=$UPDATES
    [[ $BUDGET != half ]] || { echo "BUDGET=half is of all_reduce: take equal-updates or equal-epochs" >&2 && exit 2; }
    [[ $BUDGET != equal-epochs ]] || { name+=_equal_epochs updates=$((MODELS * UPDATES)); }
    train "$name" "$PER_NODE" "$updates" "$((BATCHES > workers ? BATCHES / workers : 1))" --lr "$CODISTILLED_LR" \
        --codistill-models "$MODELS" "${EXCHANGE[@]}" "${@:2}"
}

# train NAME PROCESSES UPDATES BATCHES OPTIONS...: processes of a node; batches that each of them adds up in an update.
train() {
    local name=$1 directory=$RUNS/$1-s$SEED command
    is_wanted "$name" || return 0
    meet "$name"
    of_length "$3" # sets SCHEDULE: options that depend on the length of the run
    command=("$TORCHRUN" "${MEET[@]}" --nproc-per-node "$2" -m fairseq_cli.train "$DATA" --user-dir codistill_ext
        --criterion codistill_label_smoothed_ce "${BASE[@]}" --max-tokens "$TOKENS" --update-freq "$4" --max-update "$3"
        "${SCHEDULE[@]}" "${@:5}" --seed "$SEED" --save-dir "$directory" ${EXTRA:-})
    if ((${#EVALUATION[@]})); then
        command=(bash recipes/lib/evaluated.sh "$directory" "${EVALUATION[@]}" -- "${command[@]}")
    fi
    launch "$name" $((NNODES * $2)) "$directory" "${command[@]}"
}
