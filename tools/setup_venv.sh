#!/usr/bin/env bash
# Makes a virtual environment with torch, leeboard (editable) and the extras named on the command
# line: setup_venv.sh VENV EXTRAS. TORCH (default torch==2.13.0) and PYTHON may be set.
set -euo pipefail

venv=$1
extras=$2
python=${PYTHON:-python3}
torch=${TORCH:-torch==2.13.0}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
  echo "setup: $("$python" --version) is too old; leeboard needs Python 3.10 or newer (set PYTHON)" >&2
  exit 1
}
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check -q "$@"; }

if ! "$venv/bin/python" -c "import torch" 2>/dev/null; then
  if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    echo "setup: a GPU is here: installing $torch with CUDA"
    pip install "$torch"
  elif [ "$(uname -s)" != Linux ]; then
    pip install "$torch"
  elif command -v rocminfo >/dev/null; then
    echo "setup: an AMD GPU may be here: install a ROCm build of $torch into $venv first" >&2
    exit 1
  # The CPU build for Linux has a local version; only some indexes carry it. uv knows where
  # PyTorch keeps it.
  elif pip install "$torch+cpu" 2>/dev/null; then
    echo "setup: installed $torch+cpu"
  elif pip install uv && "$venv/bin/uv" pip install -q --python "$venv/bin/python" \
    --torch-backend cpu "$torch"; then
    echo "setup: installed the CPU build of $torch"
  else
    echo "setup: no CPU build of $torch could be found; installing the default one (large)"
    pip install "$torch"
  fi
fi

pip install "scikit-build-core>=0.11" "pybind11>=3.0" "cmake>=3.25" "ninja>=1.11"
pip install --no-build-isolation --editable ".[$extras]"
