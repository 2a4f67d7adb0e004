# Sourced by the lib.sh of recipes: how a run is started, or listed. What a user may set is described there.

NAMES=() # of the recipe's runs, as they come
trap check_only EXIT
trap 'exit 143' TERM # or it would look as if the recipe had come to its end
trap 'exit 129' HUP

refuse() {
    echo "$*" >&2
    exit 2
}

# meet NAME: sets MEET, torchrun's options of where the nodes of a run meet.
meet() {
    MEET=(--standalone)
    ((NNODES == 1)) && return
    : "${HEAD:?is where the $NNODES nodes meet: set it to HOST:PORT of one of them, the same on all}"
    MEET=(--nnodes "$NNODES" --rdzv-backend c10d --rdzv-endpoint "$HEAD" --rdzv-id "$1-s$SEED")
}

# is_wanted NAME
is_wanted() {
    NAMES+=("$1")
    [[ -z ${ONLY:-} || " $ONLY " == *" $1 "* ]]
}

# A name in ONLY that no run has is a slip. Lists may be asked of several recipes at once.
check_only() {
    local status=$? name
    ((status == 0)) && [[ -z ${LIST:-} ]] && ((${#NAMES[@]})) || return "$status"
    for name in ${ONLY:-}; do
        [[ " ${NAMES[*]} " == *" $name "* ]] || refuse "ONLY: this recipe has no run $name, but ${NAMES[*]}"
    done
}

# launch NAME PROCESSES DIRECTORY COMMAND...: with LIST a line of JSON, else the run, unless it has ended before. ENDED
# is the file of the directory that says so. IDENTITY has the options that make it this run, wherever and on how many
# processes it is trained; its directory keeps them, and a run of others is refused there.
launch() {
    local name=$1 processes=$2 directory=$3 command=("${@:4}") options begun
    if [[ -n ${LIST:-} ]]; then
        printf '{"name": "%s", "processes": %d, "command": [' "$name" "$processes"
        printf '"%s", ' "${command[@]:0:${#command[@]}-1}"
        printf '"%s"]}\n' "${command[-1]}"
        return
    fi
    options=$(printf '%q ' "${IDENTITY[@]}")
    if [[ -f $directory/recipe && $(<"$directory/recipe") != "$options" ]]; then
        echo "$directory is of a run $name with other options: choose another RUNS, or remove it (or only its file recipe," >&2
        echo "if what differs does not matter):" >&2
        refuse "$(diff <(tr ' ' '\n' <"$directory/recipe") <(tr ' ' '\n' <<<"$options") | grep '^[<>]')"
    fi
    if [[ -f $directory/${ENDED:-summary.json} ]]; then
        echo "== $name: using the run in $directory (remove it to train again)"
        return
    fi
    echo "== $name: ${command[*]}"
    if [[ ! -f $directory/recipe ]]; then
        mkdir -p "$directory" && begun=$(mktemp "$directory/.recipe.XXXXXX") || refuse "$directory cannot be written"
        echo "$options" >"$begun" && mv "$begun" "$directory/recipe"
    fi
    "${command[@]}"
}
