# Sourced by the lib.sh of recipes: how a run is started, or listed. What a user may set is described there.

# meet NAME: sets MEET, torchrun's options of where the nodes of a run meet.
meet() {
    MEET=(--standalone)
    ((NNODES == 1)) || MEET=(--nnodes "$NNODES" --rdzv-backend c10d --rdzv-endpoint "$HEAD" --rdzv-id "$1-s$SEED")
}

# is_wanted NAME
is_wanted() {
    [[ -z ${ONLY:-} || " $ONLY " == *" $1 "* ]]
}

# launch NAME PROCESSES DIRECTORY COMMAND...: with LIST a line of JSON, else the run, unless it has ended before.
launch() {
    local name=$1 processes=$2 directory=$3 command=("${@:4}")
    if [[ -n ${LIST:-} ]]; then
        printf '{"name": "%s", "processes": %d, "command": [' "$name" "$processes"
        printf '"%s", ' "${command[@]:0:${#command[@]}-1}"
        printf '"%s"]}\n' "${command[-1]}"
    elif [[ -f $directory/summary.json ]]; then
        echo "== $name: using the run in $directory (remove it to train again)"
    else
        echo "== $name: ${command[*]}"
        "${command[@]}"
    fi
}
