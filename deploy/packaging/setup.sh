#!/usr/bin/env bash
# Makes .venv with everything that the jobs and the tests need: deploy/packaging/setup.sh cpu|cuda
# TORCH_INDEX=URL names one more package index (where torch's CPU or CUDA builds are); PYTHON=… names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/../.."

extra=${1:-cpu}
venv=.venv
constraints=deploy/constraints/$extra-py311.txt
[[ -f $constraints ]] || { echo "setup: EXTRA must be cpu or cuda, not '$extra'" >&2; exit 2; }

supported() { # runs, is 3.11 to 3.13, and can make virtual environments
    "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

find_python() {
    for candidate in ${PYTHON:-} python3.11 python3.12 python3.13 python3 python; do
        if supported "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    cat >&2 <<'MESSAGE'
setup: no Python 3.11, 3.12 or 3.13 with venv was found on the PATH. Install one, for example
         Debian, Ubuntu   apt-get install python3.11 python3.11-venv
         Fedora           dnf install python3.11
         anywhere         uv python install 3.11, or pyenv install 3.11
       or name it: make setup PYTHON=/path/to/python3.11
MESSAGE
    exit 2
}

if [[ ! -x $venv/bin/python ]] || ! supported "$venv/bin/python" || [[ -f $venv/.extra && $(<"$venv/.extra") != "$extra" ]]; then
    # Never over an old environment: the CPU and CUDA builds of FBGEMM share a folder.
    python=$(find_python)
    echo "setup: making $venv with $("$python" --version) ($python)"
    "$python" -m venv --clear "$venv"
fi
echo "$extra" > "$venv/.extra"

packages=(-e ".[$extra,test]")
[[ $extra == cpu ]] && packages=(./deploy/packaging/fbgemm-gpu-cpu-shim "${packages[@]}")
index=()
[[ -n ${TORCH_INDEX:-} ]] && index=(--extra-index-url "$TORCH_INDEX")
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint "$constraints" "${index[@]+"${index[@]}"}" "${packages[@]}"
"$venv/bin/python" -m retilt doctor
