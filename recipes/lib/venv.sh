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

pip_install() {
    if ! "$VENV/bin/python" -m pip install --disable-pip-version-check "$@" >>"$VENV/install.log" 2>&1; then
        tail -n 15 "$VENV/install.log" >&2
        stop "pip could not install: $*" \
            "Is there a network, or a package index that pip is configured for? All of its output: $VENV/install.log"
    fi
}

# What the environment is made of: equal stamps, same environment.
stamp() {
    (cd "$ROOT" && pwd && cat setup.py requirements/*.txt) | sha256sum
}

make_venv() {
    local start=$SECONDS python
    if [[ -x $VENV/bin/python && $(cat "$VENV/installed" 2>/dev/null) == "$(stamp)" ]]; then
        echo "== using $VENV"
        return
    fi
    python=$(find_python)
    check_disk
    echo "== installing into $VENV with $("$python" --version): 5.5 GB, 2 to 10 minutes, once"
    [[ -x $VENV/bin/python ]] || "$python" -m venv "$VENV" || stop "$python could not make $VENV"
    : >"$VENV/install.log"
    pip_install --no-deps --require-hashes -r "$ROOT/requirements/fairseq.txt"
    (cd "$ROOT" && pip_install -c requirements/constraints.txt -e '.[translation,vision,recipes,dev]')
    stamp >"$VENV/installed"
    echo "== installed in $((SECONDS - start)) seconds"
}
