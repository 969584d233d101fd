"""What becomes of the shell commands of the pages that tests/document_commands.py does not run in the wheel's test.

tests/test_page_commands.py checks that no command falls between, and runs those that a CPU can run, in its slow tests.
"""

import re
import shutil
from dataclasses import dataclass

import document_commands as documents
import numpy as np
from PIL import Image
from support import ROOT, SMALL

from mindrepvgg import create_model, save_checkpoint, to_deploy


@dataclass(frozen=True)
class Rule:
    """What becomes of commands that are not run as they are printed.

    Attributes:
        pattern: of the whole command, without its comment.
        added: what is added to them; None: they are not run.
        reason: why.
    """

    pattern: str
    added: str | None
    reason: str


IMAGENET = "(/data/imagenet|IMAGENET|imagenet)"

# A command of ours that no rule names is run as it is printed. The first rule that fits is taken.
RULES = (
    Rule("make .*|.ci/run|.venv/bin/.*", None, "builds environments, or is what runs this"),
    Rule("(pip|git|uname|source|python3? -m venv) .*", None, "installs"),
    Rule("npu-smi .*|for i in .*|/usr/local/.*|done|nproc; .*|python -c .*Ascend.*", None, "needs an NPU"),
    Rule("mindrepvgg ascend-check .*", None, "takes minutes; tests/measure runs it"),
    Rule("(kubectl|ma-cli) .*", None, "needs a cluster"),
    Rule("msrun .*", None, "needs several NPUs; tests/training runs two processes"),
    Rule("curl .*|python examples/serve/.*", None, "needs a running service; tests/examples has one"),
    Rule(".* [.]{3}", None, "the dots stand for a data set and a folder"),
    Rule("mindrepvgg train --resume runs/a1.*", None, "goes on with a run of ImageNet; tests/training resumes runs"),
    Rule(
        f"python train.py -c configs/[a-z_0-9/]*.yaml --data_dir {IMAGENET}[^ ]* --dry_run", "--show_config", "minutes"
    ),
    Rule(f"mindrepvgg train -c [a-z_0-9/]* --data_dir {IMAGENET}[^ ]*", "--show_config", "takes days"),
    Rule("mindrepvgg train .*--scales .*", None, "needs the authors' scales; tests/training has scales of its own"),
    Rule("mindrepvgg train -c cifar10_.*", "--show_config", "takes hours"),
    Rule(
        "mindrepvgg train -c quickstart",
        "--epoch_size 1 --batch_size 1000 --image_resize 16 --mode 1",
        "a minute",
    ),
    Rule("mindrepvgg train -c (finetune|folder) .*", "--show_config", "takes minutes"),
    Rule(
        "mindrepvgg .*mindcv/.*runs/resnet18|mindrepvgg .* runs/resnet18.*",
        None,
        "tests/training/test_mindcv_training.py does it",
    ),
    Rule(
        "mindrepvgg train -c quickstart --block dbb .*",
        "--epoch_size 1 --batch_size 1000 --image_resize 16 --mode 1",
        "takes minutes",
    ),
    Rule("mindrepvgg train .* --show_config", "", "reads the recipe only"),
    Rule("mindrepvgg train -c quickstart --ckpt_save_dir runs/digits", None, "the tests have run it before"),
    Rule(
        "mindrepvgg train -c quickstart_qat .*",
        "--epoch_size 1 --batch_size 1000 --image_resize 16 --mode 1",
        "takes minutes",
    ),
    Rule("mindrepvgg train --model repvgg_a1 --pretrained .*", None, "downloads released weights"),
    Rule(
        "mindrepvgg (validate|convert|weights) (timm|mmpretrain|mindcv|repvgg_a1)[/ ].*",
        None,
        "downloads released weights",
    ),
    Rule(
        "mindrepvgg quantize .*--target_drop .*", "--allow_drop --limit 8 --calibration_images 8", "as the line below"
    ),
    Rule(
        "mindrepvgg quantize .*", "--allow_drop --limit 100 --calibration_images 32", "needs a network that has learnt"
    ),
    Rule("mindrepvgg benchmark --models .*", None, "takes minutes; tests/cli measures"),
    Rule("mindrepvgg benchmark .*", "--rounds 1 --warmup 1", "measures"),
    Rule(
        "mindrepvgg validate .*--cross_check timm", None, "needs timm and torchvision; tests/evaluation has a stand-in"
    ),
    Rule("mindrepvgg convert FILE out.ckpt --weights ema .*", None, "needs an averaged copy; tests/cli has one"),
)

# For the pages that begin with README's runs/digits, or with what `make demo` wrote: a run that is made shorter.
DIGITS = (
    "train -c quickstart --epoch_size 1 --batch_size 1000 --mode 1 --ckpt_save_dir runs/digits",
    "convert runs/digits/repvgg_nano_best.ckpt outputs/demo/repvgg_nano_deploy.ckpt",
)


def pages():
    """The documents that have commands, without translations and those of `document_commands.DOCUMENTS`."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    names = [path.relative_to(ROOT).as_posix() for path in sorted(found)]
    elsewhere = (*documents.DOCUMENTS, "docs/tutorial.md")  # the second: tests/benchmarks/test_tutorial.py
    return [name for name in names if name not in elsewhere and not translated(name) and commands_of(name)]


def translated(name):
    """Whether a document is a translation."""
    return name == "README.zh-CN.md" or name.startswith("docs/zh/")


def commands_of(name):
    """The commands of a document, in its order."""
    blocks = documents.blocks((ROOT / name).read_text(encoding="utf-8"))
    return [command for language, block in blocks if language == "bash" for command in documents.commands(block)]


def is_ours(command):
    """Whether a command is one of the package's own."""
    return re.match(r"mindrepvgg |python (train|validate|convert)\.py", command) is not None


def rule_for(command):
    """The rule for a command; None: it is run as it is printed."""
    return next((rule for rule in RULES if re.fullmatch(rule.pattern, command)), None)


def to_run(command):
    """A command of ours as the tests run it: of the checkout's scripts, as the verb; None: it is not run."""
    rule = rule_for(command)
    if rule and rule.added is None:
        return None
    command = re.sub(r"^python (train|validate|convert)\.py", r"mindrepvgg \1", command)
    command = re.sub(
        r"(?<=--data_dir )(/data/imagenet|IMAGENET)", "imagenet", command.replace("/data/imagenet", "imagenet")
    )
    return f"{command} {rule.added}".strip() if rule else command


def prepare(folder, digits):
    """Put into a folder what the pages take for granted.

    Args:
        folder: the current folder.
        digits: the folder in which `DIGITS` were run.
    """
    documents.prepare(folder)
    (folder / "configs").symlink_to(ROOT / "configs")
    shutil.copytree(digits, folder, dirs_exist_ok=True)
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            for number in range(4):
                path = folder / "imagenet" / part / name / f"{number}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(path, quality=95)
    shutil.copytree(folder / "holiday", folder / "pictures")
    Image.fromarray(rng.integers(0, 255, (32, 32), dtype=np.uint8)).save(folder / "photo.png")
    facts = {"dataset": "folder", "class_names": ["cat", "dog"], "image_size": [32, 32]}
    save_checkpoint(create_model("repvgg", 2, **SMALL["plain"]), folder / "best.ckpt", **facts)
    net = create_model("repvgg_a0", 2)
    save_checkpoint(net, folder / "a1.ckpt", **facts)
    save_checkpoint(to_deploy(net), folder / "fused.ckpt", **facts)
    for name in ("RepVGG-A1-train.pth", "FILE"):  # what is in a file decides, not its name
        shutil.copy(folder / "a1.ckpt", folder / name)
