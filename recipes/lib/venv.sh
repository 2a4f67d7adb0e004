# Sourced by recipes/quickstart.sh and tests/run.sh: makes .venv in the checkout, or reuses it.
# Needs ROOT (the checkout); sets VENV. PYTHON chooses the interpreter (3.11 or 3.12).

VENV=$ROOT/.venv
NEED_GB=8 # the CUDA build of torch takes 5.5 GB, and pip keeps the archives while it unpacks

stop() {
    printf '\nstopped: %s\n' "$*" >&2
    exit 1
}

# Prints the first interpreter that is Python 3.11 or 3.12 and can make a virtual environment.
find_python() {
    local name
    for name in ${PYTHON:-python3.11 python3.12 python3}; do
        if "$name" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null
        then
            echo "$name"
            return
        fi
    done
    stop "no Python 3.11 or 3.12 with venv among: ${PYTHON:-python3.11 python3.12 python3}." \
        "Install one (on Debian and Ubuntu: python3.11 and python3.11-venv)," \
        "or name it: PYTHON=/path/to/python3.11 bash $0"
}

check_disk() {
    local free_kb
    free_kb=$(df -Pk "$ROOT" | awk 'NR == 2 {print $4}')
    ((free_kb >= NEED_GB * 1024 * 1024)) || stop "$ROOT has $((free_kb / 1024 / 1024)) GB free," \
        "the installation needs $NEED_GB GB (torch comes as a CUDA build of about 5.5 GB)."
}

# What the environment is made of: equal stamps, same environment.
stamp() {
    (cd "$ROOT" && pwd && cat setup.py requirements/*.txt) | sha256sum
}

is_done() {
    [[ $(cat "$1" 2>/dev/null) == "$(stamp)" ]]
}

# step NAME ARGUMENT...: pip install ARGUMENT..., unless an earlier start came so far.
step() {
    local marker=$VENV/steps/$1
    is_done "$marker" && return
    (cd "$ROOT" && "$VENV/bin/python" -m recipes.pip_install "$1" "$VENV/install.log" "${@:2}") || exit 1
    mkdir -p "$VENV/steps"
    stamp >"$marker"
}

# What is large is a step of its own: a second start has it behind it. A newer pip first, because it continues
# downloads that break.
install_all() {
    local start=$SECONDS python
    is_done "$VENV/installed" && return # by the process that this one has waited for
    python=$(find_python) || exit 1
    is_done "$VENV/steps/torch" || check_disk
    echo "== installing into $VENV with $("$python" --version): 5.5 GB, 2 to 10 minutes, once"
    "$VENV/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv "$VENV" || stop "$python could not make $VENV"
    : >"$VENV/install.log"
    step pip -c requirements/constraints.txt --upgrade pip
    step fairseq --no-deps --require-hashes -r requirements/fairseq.txt
    step torch -c requirements/constraints.txt torch torchvision
    step codistill_ext -c requirements/constraints.txt -e '.[translation,vision,recipes,huggingface,fabric,docs,dev]'
    stamp >"$VENV/installed"
    echo "== installed in $((SECONDS - start)) seconds"
}

make_venv() {
    if is_done "$VENV/installed" && [[ -x $VENV/bin/python ]]; then
        echo "== using $VENV"
        return
    fi
    (
        flock --nonblock 9 || { echo "== another process is installing into $VENV: waiting for it" && flock 9; }
        install_all
    ) 9>"$ROOT/.venv.lock" || exit 1
}
