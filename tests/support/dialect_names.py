"""How each project names RepVGG's parameters, written out a second time, and arrays under these names."""

import numpy as np

from mindrepvgg.models import variants
from support import SMALL

VARIANTS = {kind: variants.custom(**shape) for kind, shape in SMALL.items()}

TORCH_BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

MEGENGINE_BN = TORCH_BN[:4]


MINDSPORE_BN = ("gamma", "beta", "moving_mean", "moving_variance")

# stem, block, 3x3 conv, its BN, 1x1 conv, its BN, identity BN, fused conv, SE's two convs, head, BN's leaves
NAMES = {
    "official": (
        "stage0", "stage{s}.{i}", "rbr_dense.conv", "rbr_dense.bn", "rbr_1x1.conv", "rbr_1x1.bn", "rbr_identity",
        "rbr_reparam", "se.down", "se.up", "linear", TORCH_BN,
    ),
    "repvggplus": (
        "stage0", "stage{s}.blocks.{i}", "rbr_dense.conv", "rbr_dense.bn", "rbr_1x1.conv", "rbr_1x1.bn",
        "rbr_identity", "rbr_reparam", "post_se.down", "post_se.up", "linear", TORCH_BN,
    ),
    "timm": (
        "stem", "stages.{s-1}.{i}", "conv_kxk.conv", "conv_kxk.bn", "conv_1x1.conv", "conv_1x1.bn", "identity",
        "reparam_conv", "attn.fc1", "attn.fc2", "head.fc", TORCH_BN,
    ),
    "mmpretrain": (
        "backbone.stem", "backbone.stage_{s}.{i}", "branch_3x3.conv", "branch_3x3.norm", "branch_1x1.conv",
        "branch_1x1.norm", "branch_norm", "branch_reparam", "se_layer.conv1.conv", "se_layer.conv2.conv", "head.fc",
        TORCH_BN,
    ),
    "mindcv": (
        "stage0", "stage{s}.{i}", "rbr_dense.0", "rbr_dense.1", "rbr_1x1.0", "rbr_1x1.1", "rbr_identity",
        "rbr_reparam", "se.conv_reduce", "se.conv_expand", "linear", MINDSPORE_BN,
    ),
    "modelzoo": (
        "stage0", "stage{s}.{i}", "rbr_dense.0", "rbr_dense.1", "rbr_1x1.0", "rbr_1x1.1", "rbr_identity",
        "rbr_reparam", "se.down", "se.up", "linear", MINDSPORE_BN,
    ),
    "basecls": (
        "stage0", "stage{s}.{i}", "rbr_dense.conv", "rbr_dense.bn", "rbr_1x1.conv", "rbr_1x1.bn", "rbr_identity",
        "rbr_reparam", "se.f_ex.0", "se.f_ex.2", "head.fc", MEGENGINE_BN,
    ),
    "mindrepvgg": (
        "stage0", "stage{s}.{i}", "rbr_dense.conv", "rbr_dense.bn", "rbr_1x1.conv", "rbr_1x1.bn", "rbr_identity",
        "rbr_reparam", "{post}se.down", "{post}se.up", "linear", MINDSPORE_BN,
    ),
}  # fmt: skip

AUX = {
    "repvggplus": ("0.conv", "0.bn", "3"),
    "mindrepvgg": ("downsample.conv", "downsample.bn", "linear"),
}


def knows(dialect, variant):
    return variant.aux_heads if dialect == "repvggplus" else not variant.aux_heads or dialect == "mindrepvgg"


def shapes_in(dialect, variant, deploy, classes=1000, channels=3, aux=True):
    """Name -> shape as the project has them, from the tables above and the paper's rules."""
    stem, block, conv3, bn3, conv1, bn1, identity, fused, down, up, head, leaves = NAMES[dialect]
    vector = (lambda n: (1, n, 1, 1)) if dialect == "basecls" else (lambda n: (n,))
    post = "post_" if variant.se == "post" else ""
    shapes = {}

    def bn(name, width):
        shapes.update({f"{name}.{leaf}": () if "batches" in leaf else vector(width) for leaf in leaves})

    def kernel(name, out, per_group, size, groups=1):
        grouped = dialect == "basecls" and groups > 1
        shapes[f"{name}.weight"] = (*((groups, out // groups) if grouped else (out,)), per_group, size, size)

    def biased(name, *sizes, **options):
        kernel(name, *sizes, **options)
        shapes[f"{name}.bias"] = vector(sizes[0])

    def add_block(prefix, width, out, groups, stride):
        if deploy:
            biased(f"{prefix}.{fused}", out, width // groups, 3, groups=groups)
        else:
            kernel(f"{prefix}.{conv3}", out, width // groups, 3, groups)
            bn(f"{prefix}.{bn3}", out)
            kernel(f"{prefix}.{conv1}", out, width // groups, 1, groups)
            bn(f"{prefix}.{bn1}", out)
            if stride == 1 and width == out:
                bn(f"{prefix}.{identity}", out)
        if variant.se:
            biased(f"{prefix}.{down.format(post=post)}", out // variant.se_ratio, out, 1)
            biased(f"{prefix}.{up.format(post=post)}", out, out // variant.se_ratio, 1)

    add_block(stem, channels, variant.widths[0], 1, 2)
    width, counted = variant.widths[0], 0
    for s, (depth, out) in enumerate(zip(variant.num_blocks, variant.widths[1:], strict=True), 1):
        for i in range(depth):
            counted += 1
            groups = variant.group_size if counted % 2 == 0 else 1
            half, index = "", i
            if s == 3 and variant.aux_heads:
                half, index = ("_first", i) if i < depth // 2 else ("_second", i - depth // 2)
            name = block.replace("{s-1}", str(s - 1)).format(s=f"{s}{half}", i=index)
            add_block(name, width, out, groups, 2 if i == 0 else 1)
            width = out
    if variant.aux_heads and aux and not deploy:
        conv, norm, linear = AUX[dialect]
        for name, out in zip(("stage1_aux", "stage2_aux", "stage3_first_aux"), variant.widths[1:], strict=False):
            kernel(f"{name}.{conv}", out, out, 3)
            bn(f"{name}.{norm}", out)
            shapes[f"{name}.{linear}.weight"], shapes[f"{name}.{linear}.bias"] = (classes, out), (classes,)
    shapes[f"{head}.weight"], shapes[f"{head}.bias"] = (classes, variant.widths[-1]), (classes,)
    return shapes


def zeros(shapes):
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def random_arrays(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: np.array(0, np.int64) if "batches" in name else rng.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def names_alike(dialect, variant, deploy):
    """The first dialect that names this network as `dialect` does."""
    names = list(shapes_in(dialect, variant, deploy))
    return next(d for d in NAMES if knows(d, variant) and list(shapes_in(d, variant, deploy)) == names)


def real_shapes(net):
    return {parameter.name: tuple(parameter.shape) for parameter in net.get_parameters()}
