"""Every mistake is answered in one line, with status 2, and nothing is written."""

import pytest
from support import contents

# (command, arguments, what the error says); {f} is the folder of `files`, {t} train.py's recipe and output folder.
TRAIN = "-c {f}/tiny.yaml --ckpt_save_dir {f}/out"
BAD_INPUT = [
    ("validate", "--ckpt_path {f}/none.ckpt", "none.ckpt does not exist"),
    ("validate", "--ckpt_path {f}", "is a folder, expected a checkpoint"),
    ("validate", "--ckpt_path {f}/train.ckpt/x.ckpt", "cannot be read: Not a directory"),
    ("validate", "--ckpt_path {f}/cut.ckpt", "cut.ckpt is damaged or no checkpoint: it is cut short"),
    ("validate", "--ckpt_path {f}/altered.ckpt", "altered.ckpt was altered after it was written"),
    ("validate", "--ckpt_path {f}/empty.ckpt", "empty.ckpt is empty: it was never written to the end"),
    ("validate", "--ckpt_path {f}/text.ckpt", "text.ckpt is damaged or no checkpoint"),
    (
        "validate",
        "--ckpt_path {f}/five.ckpt",
        "num_classes (=5) differs from the 10 classes of the val split",
    ),
    ("validate", "--ckpt_path {f}/train.ckpt --batch_size 0", "batch_size (='0') must be"),
    ("validate", "--ckpt_path {f}/train.ckpt --dataset imagenet", "data_dir is not given"),
    ("validate", "--ckpt_path {f}/train.ckpt --dataset imagenet --data_dir {f}/none", "none does not exist"),
    ("validate", "--ckpt_path {f}/train.ckpt --dataset imagenet --data_dir {f}/text.ckpt", "text.ckpt is a file"),
    ("validate", "--ckpt_path {f}/train.ckpt --dataset imagenet --data_dir {f}/no_data", "no class folders in"),
    (
        "validate",
        "--ckpt_path {f}/train.ckpt --dataset imagenet --data_dir {f}/letters",
        "missing ['0', '1', '2', '3',",
    ),
    (
        "validate",
        "--ckpt_path {f}/train.ckpt --dataset cifar",
        "dataset (='cifar') must be folder, imagenet",
    ),
    ("validate", "--ckpt_path {f}/train.ckpt --mode 2", "argument --mode: invalid choice"),
    ("convert", "{f}/none.ckpt {f}/fused.ckpt", "none.ckpt does not exist"),
    ("convert", "{f}/cut.ckpt {f}/fused.ckpt", "cut.ckpt is damaged or no checkpoint"),
    ("convert", "{f}/altered.ckpt {f}/fused.ckpt", "altered.ckpt was altered after it was written"),
    (
        "convert",
        "{f}/deploy.ckpt {f}/again.ckpt --form train",
        "is in deploy form: its branches are fused and cannot be recovered",
    ),
    ("convert", "{f}/train.ckpt {f}/fused.onnx", "fused.onnx must end in one of .ckpt, .safetensors, "),
    ("convert", "{f}/train.ckpt {f}/text.ckpt/fused.ckpt", "text.ckpt: File exists"),
    ("convert", "{f}/train.ckpt {f}/fused.ckpt --rtol few", "argument --rtol: 'few' must be a number of at least 0"),
    ("convert", "{f}/train.ckpt {f}/fused.ckpt --rtol nan", "argument --rtol: 'nan' must be a number of at least 0"),
    ("validate", "--ckpt_path {f}/train.ckpt --cross_check --rtol=-1", "--rtol: '-1' must be a number of at least 0"),
    ("export", "{f}/train.ckpt {f}/out.onnx --rtol inf", "argument --rtol: 'inf' must be a number of at least 0"),
    ("train", "-c {f}/none.yaml", "none.yaml does not exist, expected a recipe; check the path"),
    ("train", "-c {f}", "is a folder, expected a recipe"),
    ("train", "-c {f}/list.yaml", "list.yaml must hold lines `key: value`, it holds a list"),
    ("train", "-c {f}/broken.yaml", "broken.yaml, line 2: "),
    ("train", "-c {f}/train.ckpt", "train.ckpt, line 2: this is not UTF-8 text, expected yaml"),
    ("train", "-c {f}/unknown.yaml", "unknown key 'bach_size' in {f}/unknown.yaml; did you mean 'batch_size'?"),
    ("train", "-c {f}/type.yaml", "epoch_size (='many' in {f}/type.yaml) must be a whole number of at least 1"),
    (
        "train",
        "-c {f}/mindcv_auto.yaml",
        "loss_scale_type (='auto' in {f}/mindcv_auto.yaml) would leave the loss scale",
    ),
    ("train", f"{TRAIN} --bach_size 3", "unknown option --bach_size; did you mean --batch_size?"),
    ("train", f"{TRAIN} --num_classes 5", "num_classes (=5) differs from the 10 classes of the train split of mnist5k"),
    ("train", f"{TRAIN} --batch_size 4001", "batch_size (=4001) is larger than the 4,000 training pictures"),
    ("train", "-c {f}/folder_data.yaml --ckpt_save_dir {f}/out", "data_dir is not given"),
    ("train", "-c {f}/folder_data.yaml --ckpt_save_dir {f}/out --data_dir {f}/no_data", "no folder train in"),
    ("train", "-c {f}/folder_data.yaml --ckpt_save_dir {f}/out --data_dir {f}/no_pictures", "no pictures in"),
    ("train", "-c {f}/folder_data.yaml --ckpt_save_dir {f}/out --data_dir {f}/tiny.yaml", "tiny.yaml is a file"),
    ("train", "-c {f}/tiny.yaml --ckpt_save_dir {f}/text.ckpt", "leads to a file; give a folder"),
    ("train", "-c {f}/tiny.yaml --ckpt_save_dir {f}/text.ckpt/out", "leads to a file; give a folder"),
    ("train", "-c {f}/tiny.yaml --ckpt_save_dir /proc/nothing/out", "/proc/nothing"),
    ("train", f"{TRAIN} --resume", "out/repvgg_last.ckpt does not exist: there is no run to resume; start one without"),
    ("train", f"{TRAIN} --resume {{f}}/none.ckpt", "none.ckpt does not exist"),
    ("train", f"{TRAIN} --resume {{f}}/train.ckpt", "train.ckpt holds a network but not the state of a run"),
    ("train", "--resume {f}/none.ckpt", "none.ckpt does not exist"),
    ("train", "--resume {f}/cut.ckpt", "cut.ckpt is damaged or no checkpoint"),
    ("train", "--resume {f}/train.ckpt", "train.ckpt holds a network but not the state of a run"),
    ("train", f"{TRAIN} --resume {{f}}/run_last.ckpt --lr 0.5", "lr was 0.1 and is now 0.5"),
    (
        "train",
        f"{TRAIN} --resume --overwrite",
        "--resume continues a run and --overwrite discards it; give one",
    ),
    (
        "train",
        "-c {f}/tiny.yaml --ckpt_save_dir {f}",
        "holds a run already (run_last.ckpt); add --resume",
    ),
]


@pytest.mark.parametrize(("command", "arguments", "words"), BAD_INPUT, ids=[f"{c} {a}" for c, a, _ in BAD_INPUT])
def test_bad_input(files, call, command, arguments, words):
    """One line on stderr, exit status 2, nothing written or overwritten."""
    before = contents(files)
    status, out, err = call(command, *(argument.format(f=files) for argument in arguments.split()))
    assert status == 2
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert words.format(f=files) in err
    assert "Traceback" not in out + err
    assert contents(files) == before


def test_a_good_input_passes_where_the_bad_ones_fail(files, call):
    """Negative control for the table above: the same recipe and folder, without the mistake."""
    status, out, err = call("train", *(TRAIN + " --epoch_size 1 --mode 1").format(f=files).split())
    assert (status, err) == (0, "")
    out_folder = files / "out"
    assert f"validate it: mindrepvgg validate {out_folder / 'repvgg_best.ckpt'}\n" in out
    assert (
        f"fuse it:     mindrepvgg convert {out_folder / 'repvgg_best.ckpt'} {out_folder / 'repvgg_deploy.ckpt'}" in out
    )
