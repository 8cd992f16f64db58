#!/usr/bin/env bash
# Check the prerequisites, print what is missing, then install raychat and its crate into .venv.
# `make install` calls this script, and calls it again after the dependencies or the crate have changed.
#   PYTHON=/path/to/python3   the interpreter to build .venv with (default: the newest of 3.13, 3.12, 3.11 that runs)
#   MIN_FREE_GB=10            required free disk: 6 GB for .venv, and 3 GB for the downloads during the installation
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

MIN_FREE_GB=${MIN_FREE_GB:-10}
venv=.venv

fail() { # fail PROBLEM REMEDY...: each remedy is one line
    printf '\ncannot install raychat: %s\n' "$1" >&2
    shift
    printf '    %s\n' "$@" >&2
    exit 1
}

check_python() { # sets $python
    local candidate
    python=
    for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
        # Run it: pyenv also puts commands on the PATH for versions that are not installed.
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            python=$(command -v "$candidate")
            break
        fi
    done
    [ -n "$python" ] || fail "no Python 3.11 or newer (tried: ${PYTHON:-python3.13 python3.12 python3.11 python3})." \
        "Debian, Ubuntu: sudo apt install python3 python3-venv     (Debian 12, Ubuntu 24.04 or newer)" \
        "elsewhere: https://www.python.org/downloads, then: make install PYTHON=/path/to/python3"
    "$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python cannot create environments (no venv module)." \
        "Debian, Ubuntu: sudo apt install $("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
}

check_rust() { # the crate in tokenizer/ is compiled here
    local need have
    need=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' tokenizer/Cargo.toml)
    have=$(cargo --version 2>/dev/null | cut -d' ' -f2 || true)
    [ -n "$have" ] || fail "no Rust toolchain (cargo is not on the PATH)." \
        "install it as https://rustup.rs says, open a new shell (or: . ~/.cargo/env) and run make again"
    [ "$(printf '%s\n%s\n' "$need" "$have" | sort -V | head -n 1)" = "$need" ] || fail \
        "the Rust toolchain is too old: cargo $have, expected $need or newer." \
        "with rustup: rustup update stable     otherwise install it as https://rustup.rs says"
    command -v cc >/dev/null || fail "no C linker (cc), which Rust needs." \
        "Debian, Ubuntu: sudo apt install build-essential"
}

check_disk() { # check_disk FOLDER GB; the fourth column of df is the free space in KiB
    local free_kb
    free_kb=$(df -Pk "$1" | awk 'NR == 2 { print $4 }')
    [ "$free_kb" -ge $(($2 * 1024 * 1024)) ] || fail \
        "not enough disk: $((free_kb / 1024 / 1024)) GB free on the disk of $1, expected $2 GB." \
        "free some space, or move the checkout (or TMPDIR, for temporary files) to a larger disk"
}

check_rust
if [ -e $venv/bin/python ]; then # update the existing environment
    "$venv/bin/python" -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        fail "the environment in .venv does not work, or its Python is older than 3.11." "make clean-all && make install"
else
    check_python
    check_disk . "$MIN_FREE_GB"
    check_disk "${TMPDIR:-/tmp}" $((MIN_FREE_GB * 2 / 5))
    printf 'Installing into .venv with %s: about 6 GB, mostly PyTorch with CUDA. This takes some minutes.\n' "$python"
    "$python" -m venv $venv
    "$venv/bin/python" -m pip install -q --upgrade pip # a distribution's pip may be years old and twice as slow
fi
"$venv/bin/python" -m pip install -c constraints.txt ./tokenizer -e '.[dev]'
printf 'Installed. Activate the environment with: source .venv/bin/activate\n'
