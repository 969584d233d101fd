"""The words that keys accept, each with what it means unless its name says it.

A word stands here once. The recipe accepts it, --help explains it, and the package that acts on it looks it up.
"""

from __future__ import annotations

ON_BAD_IMAGE = {
    "error": "end the run",
    "skip": "train on another of its batch",
    "replace": "train on another of its class",
}
DATASETS = {
    "folder": "train/ and val/ with one folder a class in each, or the class folders alone",
    "imagenet": "the same",
    "mnist5k": "nothing, it is built in",
    "mnist": "the files as published, and so for the others",
    **dict.fromkeys(("fashion_mnist", "cifar10", "cifar100"), ""),
}
DATASET_ALIASES = {"imagenet": "folder"}  # MindCV's word, and ours up to 0.1
QUANTIZATIONS = {"bn": "with BN after each convolution", "qat": "with INT8's rounding"}
OPTIMIZERS = {"momentum": "SGD with momentum", "sgd": "the same", "adamw": ""}
SCHEDULERS = (
    "cosine_decay",
    "step_decay",
    "multi_step_decay",
    "exponential_decay",
    "polynomial_decay",
    "one_cycle",
    "constant",
)
WEIGHT_DECAY_FILTERS = {
    "paper": "not biases nor the BN of the 3x3 and 1x1 branches, but the identity BN's gamma",
    "norm_and_bias": "neither biases nor any BN",
    "norm": "no BN",
    "all": "all",
}
LOSSES = {"CE": "cross-entropy", "BCE": "binary cross-entropy of each class"}
AMP_LEVELS = {
    "O0": "float32",
    "O2": "half precision, BN in float32",
    "O3": "BN's inputs and outputs too, its statistics in float32",
}
AMP_DTYPES = ("float16", "bfloat16")
LOSS_SCALES = {
    "fixed": "",
    "dynamic": "halved after an overflow, doubled after loss_scale_window steps without one",
}
ALL_REDUCES = {
    "bundled": "small gradients as one tensor, large ones each by itself",
    "each": "each by itself",
    "mindspore": "by MindSpore's own reducer, as long as it has one",
}
GROUPED = {"native": "MindSpore's own", "split": "one for each group, for a device that has no other"}
SAVE_POLICIES = {"latest_k": "the latest", "top_k": "the most accurate"}
