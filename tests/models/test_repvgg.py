"""The networks against an independent PyTorch RepVGG: inference, training, initialisation and optimisation."""

import inspect

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor
from support import (
    SMALL,
    array,
    context_mode,
    images,
    paired,
    randomise_bn,
    relative_difference,
    torch_reference,
    weights,
)

import mindrepvgg
from mindrepvgg import RepVGG, RepVGGPlus, create_model
from mindrepvgg.errors import UserError
from mindrepvgg.training.loss import build_loss
from mindrepvgg.training.optim import build_optimizer
from mindrepvgg.training.step import NetworkWithLoss, TrainStep

compat, slow = pytest.mark.compat, pytest.mark.slow

CLASSES = 10
KINDS = ["repvgg_nano", "g4", "d2se", "plus"]


def build(kind, num_classes=CLASSES, **options):
    """A fresh network: one of SMALL, or by its name."""
    if kind in SMALL:
        return create_model("repvgg", num_classes, **SMALL[kind], **options)
    return create_model(kind, num_classes, **options)


def network_and_reference(kind, seed=0, **options):
    """A network with a random history, in inference, and PyTorch's with the same weights."""
    net = randomise_bn(build(kind, **options), seed)
    reference = torch_reference.Network(net.variant, net.num_classes, net.in_channels, net.deploy)
    return net.set_train(False), torch_reference.copy_weights(net, reference).eval()


def outputs(net, x):
    """A network's outputs as a list, of either framework."""
    with torch.no_grad():
        found = net(Tensor(x) if isinstance(net, ms.nn.Cell) else torch.tensor(x))
    return list(found) if isinstance(found, tuple) else [found]


def check_outputs(net, reference, x, rtol=1e-4):
    """Compare every output; returns the logits."""
    actual, expected = outputs(net, x), outputs(reference, x)
    for one, truth in zip(actual, expected, strict=True):
        assert relative_difference(one, truth) < rtol
    return actual[0]


def check_inference(net, reference, *shape):
    logits = check_outputs(net, reference, images(*shape))
    # Logits that do not move with the image would agree whatever the network computes.
    assert relative_difference(logits[:1], logits[1:2]) > 0.02


@compat
@pytest.mark.parametrize("deploy", [False, True], ids=["train-form", "deploy-form"])
@pytest.mark.parametrize("kind", KINDS)
def test_inference_equals_pytorch(pynative_mode, kind, deploy):
    check_inference(*network_and_reference(kind, deploy=deploy), 2, 3, 64, 64)


@pytest.mark.parametrize(
    "kind", ["d2se", "plus", *(pytest.param(kind, marks=slow) for kind in ("repvgg_nano", "repvgg_a0"))]
)
def test_the_deploy_form_equals_pytorch_in_graph_mode(graph_mode, kind):
    check_inference(*network_and_reference(kind, deploy=True), 2, 3, 64, 64)


@compat
@pytest.mark.parametrize(
    ("size", "kind"), paired([(33, 33), (49, 75), (7, 5), (1, 1), (224, 32)], ["g4", "d2se", "plus"])
)
def test_any_size_and_number_of_channels(pynative_mode, kind, size):
    net, reference = network_and_reference(kind, num_classes=3, in_channels=4)
    logits = check_outputs(net, reference, images(2, 4, *size))
    assert logits.shape == (2, 3)


def check_training(kind):
    net, reference = network_and_reference(kind)
    net.set_train()
    reference.train()
    for step in range(3):
        check_outputs(net, reference, images(4, 3, 64, 64, seed=step))
    state = reference.state_dict()
    for name, value in weights(net).items():
        if ".moving_" in name:
            expected = state[torch_reference.torch_name(name, net.variant.aux_heads)]
            assert relative_difference(value, expected) < 1e-4, name
    # Inference afterwards, with the new statistics.
    check_inference(net.set_train(False), reference.eval(), 2, 3, 64, 64)


@compat
@pytest.mark.parametrize("kind", KINDS)
def test_training_equals_pytorch_with_the_statistics_of_three_steps(pynative_mode, kind):
    check_training(kind)


@pytest.mark.parametrize("kind", ["plus", *(pytest.param(kind, marks=slow) for kind in ("g4", "d2se", "repvgg_a0"))])
def test_training_equals_pytorch_in_graph_mode(graph_mode, kind):
    """The default suite has the steps of d2se in graph mode in test_sgd_steps_of_every_kind_equal_pytorchs."""
    check_training(kind)


@compat
def test_plus_answers_with_its_heads_while_it_trains(pynative_mode):
    x, net = Tensor(images()), build("plus")
    assert [output.shape for output in net.set_train()(x)] == [(2, CLASSES)] * 4
    assert net.set_train(False)(x).shape == (2, CLASSES)
    for deployed in (build("plus", deploy=True), mindrepvgg.to_deploy(net)):
        assert deployed.set_train()(x).shape == (2, CLASSES)
        assert not any("aux" in name for name in weights(deployed))


@compat
def test_dropping_the_heads_leaves_inference_as_it_was(pynative_mode):
    net, x = build("plus").set_train(False), Tensor(images())
    before = array(net(x))
    with_heads = weights(net)
    net.drop_aux_heads()
    np.testing.assert_array_equal(array(net(x)), before)
    assert {name for name in with_heads if "_aux." not in name} == set(weights(net))
    net.drop_aux_heads()


@compat
@pytest.mark.parametrize(
    ("context", "kind"), [("pynative", "plus"), *(pytest.param("graph", kind, marks=slow) for kind in ("g4", "plus"))]
)
def test_switching_in_place(context, kind):
    """The default suite switches a compiled network in test_deploy.py."""
    with context_mode(context):
        check_switching(kind)


def check_switching(kind):
    net, x = randomise_bn(build(kind)).set_train(False), Tensor(images())
    before = net(x)
    net.switch_to_deploy()
    assert net.deploy
    assert sorted(weights(net)) == sorted(weights(build(kind, deploy=True)))
    assert relative_difference(net(x), before) < 1e-4
    net.stage1[0].rbr_reparam.bias.set_data(Tensor(np.full(net.variant.widths[1], 9, np.float32)))
    assert relative_difference(net(x), before) > 1e-3


@compat
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_names_and_attributes(kind):
    net = build(kind, in_channels=1)
    assert type(net) is (RepVGGPlus if kind == "plus" else RepVGG)
    assert (net.num_classes, net.in_channels, net.deploy, net.metadata) == (CLASSES, 1, False, {})
    assert net.linear.weight.shape == (CLASSES, net.variant.widths[-1])
    assert net.stage0.rbr_dense.conv.weight.shape[1] == 1
    assert weights(net)  # unique names


@compat
@pytest.mark.parametrize("kind", ["repvgg_nano", "plus"])
def test_help_tells_shapes(kind):
    told = inspect.getdoc(build(kind).construct)
    assert told.startswith("Classify images: (N, in_channels, H, W) -> (N, num_classes)")
    assert ("a tuple" in told) == (kind == "plus")


@compat
def test_names_are_the_documented_ones():
    assert create_model("RepVGG-A0").variant.name == "repvgg_a0"
    names = set(weights(build("d2se")))
    bn = ("gamma", "beta", "moving_mean", "moving_variance")
    assert {name for name in names if name.startswith("stage1.1.")} == {
        f"stage1.1.{rest}"
        for rest in (
            *(f"{branch}.conv.weight" for branch in ("rbr_dense", "rbr_1x1")),
            *(f"{branch}.{leaf}" for branch in ("rbr_dense.bn", "rbr_1x1.bn", "rbr_identity") for leaf in bn),
            *(f"se.{conv}.{leaf}" for conv in ("down", "up") for leaf in ("weight", "bias")),
        )
    }
    assert {"linear.weight", "linear.bias", "stage0.rbr_dense.conv.weight"} <= names
    assert not any(name.startswith(("stage0.rbr_identity", "stage1.0.rbr_identity")) for name in names)
    assert "stage1.1.rbr_reparam.weight" in weights(build("d2se", deploy=True))
    plus = set(weights(build("plus")))
    assert {"stage3_second.0.rbr_identity.gamma", "stage1_aux.downsample.bn.gamma", "stage2_aux.linear.bias"} <= plus
    assert "stage1.1.post_se.down.weight" in plus


@compat
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"num_classes": 0}, "num_classes (=0) must be a whole number of at least 1"),
        ({"num_classes": True}, "num_classes (=True) must be a whole number"),
        ({"in_channels": "3"}, "in_channels (='3') must be a whole number of at least 1"),
        ({"name": "repvgg_c0"}, "model (='repvgg_c0') is not a network of the family; did you mean repvgg_"),
        ({"name": "repvgg_a0", "widths": (8,) * 5}, "repvgg_a0 has a fixed shape and takes no widths"),
        ({"name": "repvgg"}, "repvgg needs num_blocks"),
        ({"name": "x" * 10**6}, "model (='xxx"),
        ({"num_classes": 10**9}, "num_classes (=1000000000) must be a whole number of at least 1 and at most 1000000"),
        ({"in_channels": 10**9}, "in_channels (=1000000000) must be a whole number of at least 1 and at most 65536"),
        (
            {"name": "repvgg", "num_blocks": (1000, 1000, 1000, 1), "widths": (60_000,) * 5},
            "the network has 108038.2 billion parameters, more than 2.1; lower its widths, num_blocks or num_classes",
        ),
        ({"pretrained": True}, "no weights of 'repvgg_nano' are known; "),
        ({"num_class": 3}, "create_model does not know num_class; did you mean num_classes?"),
        (
            {"drop_rate": 0.1},
            "create_model does not know drop_rate; it takes num_classes, in_channels, deploy, weights, ",
        ),
    ],
)
def test_networks_that_cannot_be_built_are_refused(change, text):
    with pytest.raises(UserError) as caught:
        create_model(**{"name": "repvgg_nano", **change})
    assert text in str(caught.value)


@compat
def test_the_package_offers_its_names_lazily():
    assert set(mindrepvgg.__all__) <= set(dir(mindrepvgg))
    assert all(getattr(mindrepvgg, name).__doc__ for name in mindrepvgg.__all__)
    with pytest.raises(AttributeError, match="module 'mindrepvgg' has no attribute 'build_model'"):
        mindrepvgg.build_model  # noqa: B018


@compat
@pytest.mark.parametrize("deploy", [False, True], ids=["train-form", "deploy-form"])
@pytest.mark.parametrize("kind", ["repvgg_nano", "d2se", "plus"])
def test_initialisation_is_pytorchs(kind, deploy):
    """Weights and biases fill U(-b, b), b = 1 / sqrt(fan_in), evenly; PyTorch's own are judged by the same measure."""
    net = build(kind, deploy=deploy)
    reference = torch_reference.Network(net.variant, CLASSES, deploy=deploy).state_dict()
    arrays, filled = weights(net), {"weight": [], "bias": [], "torch": []}
    for name, value in arrays.items():
        truth = array(reference[torch_reference.torch_name(name, net.variant.aux_heads)])
        stem, _, leaf = name.rpartition(".")
        if leaf not in filled:  # BN starts as the identity, exactly
            np.testing.assert_array_equal(value, truth, err_msg=name)
            continue
        bound = 1 / np.sqrt(np.prod(arrays[f"{stem}.weight"].shape[1:]))
        assert np.abs(value).max() <= bound * (1 + 1e-6), name
        if value.size >= 500:  # enough to judge this one alone
            assert value.std() / bound == pytest.approx(1 / np.sqrt(3), rel=0.1), name
        filled[leaf].append(value.ravel() / bound)
        filled["torch"].append(truth.ravel() / bound)
    for leaf, parts in filled.items():
        values = np.concatenate(parts)
        if values.size >= 100:
            assert 0.97 < np.abs(values).max() <= 1 + 1e-6, leaf
            assert values.std() == pytest.approx(1 / np.sqrt(3), rel=0.15), leaf
            assert abs(values.mean()) < 0.2, leaf


# --------------------------------------------------------------------------------------------------------- optimisation

RATES = np.array([0.1, 0.04], np.float32)
DECAY = 0.02


def batch(seed):
    labels = np.random.default_rng(1000 + seed).integers(0, CLASSES, 8).astype(np.int32)
    return images(8, 3, 64, 64, seed=seed), labels


def torch_step(reference, nesterov=False):
    """PyTorch's training step: the paper's decay, label smoothing 0.1, auxiliary heads counting a tenth."""
    decayed, free = [], []
    for name, parameter in reference.named_parameters():
        decays = parameter.ndim > 1 or name.endswith("rbr_identity.weight")
        (decayed if decays else free).append(parameter)
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": free, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9, nesterov=nesterov)
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    reference.train()

    def step(x, labels, rate):
        for group in optimizer.param_groups:
            group["lr"] = float(rate)
        answers = reference(torch.tensor(x))
        logits, *heads = answers if isinstance(answers, tuple) else (answers,)
        labels = torch.tensor(labels).long()
        loss = criterion(logits, labels) + 0.1 * sum(criterion(head, labels) for head in heads)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def our_step(net, nesterov=False, rule="paper"):
    optimizer = build_optimizer(net, RATES, use_nesterov=nesterov, weight_decay=DECAY, weight_decay_filter=rule)
    return TrainStep(NetworkWithLoss(net, build_loss("CE", 0.1), aux_weight=0.1), optimizer)


def distances_while_training(kind, nesterov, seed):
    """Per step: loss, parameters and their changes, each as our largest relative distance from PyTorch's."""
    net, reference = network_and_reference(kind, seed)
    ours, theirs = our_step(net, nesterov), torch_step(reference, nesterov)
    found, start = [], weights(net)
    for i, rate in enumerate(RATES):
        x, labels = batch(seed + i)
        loss = relative_difference(ours(Tensor(x), Tensor(labels))[0], theirs(x, labels, rate))
        values, changes = {}, {}
        state = reference.state_dict()
        for name, value in weights(net).items():
            truth = array(state[torch_reference.torch_name(name, net.variant.aux_heads)])
            values[name] = relative_difference(value, truth)
            change = np.abs(truth - start[name]).max()
            rounding = 4 * np.finfo(np.float32).eps * np.abs(truth).max()
            changes[name] = max(np.abs(value - truth).max() - rounding, 0) / change
        found.append((loss, max(values.items(), key=lambda v: v[1]), max(changes.items(), key=lambda v: v[1])))
    return found


def check_optimisation(kind, nesterov=False):
    """Two steps, the second of which has momentum and another rate.

    One activation that rounds to the other side of a ReLU changes gradients by a thousandth. That is chance, a wrong
    step is not: the best of three batches counts.
    """
    tries = []
    for seed in (0, 10, 20):
        tries.append(distances_while_training(kind, nesterov, seed))
        if all(loss < 1e-5 and value < 1e-4 and change < 2e-3 for loss, (_, value), (_, change) in tries[-1]):
            return
    pytest.fail("\n".join(map(str, tries)))


@compat
def test_sgd_steps_equal_pytorchs(mode):
    check_optimisation("repvgg_nano")


@pytest.mark.parametrize(
    ("mode", "kind", "nesterov"),
    [
        ("pynative", "g4", False),
        ("graph", "d2se", False),
        *(pytest.param("graph", *case, marks=slow) for case in (("g4", False), ("repvgg_nano", True), ("plus", True))),
    ],
)
def test_sgd_steps_of_every_kind_equal_pytorchs(mode, kind, nesterov):
    with context_mode(mode):
        check_optimisation(kind, nesterov)


@pytest.mark.parametrize("rule", ["all", "norm_and_bias"])
def test_another_decay_rule_gives_other_weights(pynative_mode, rule):
    """The comparison above sees the rule: what another one treats differently comes out different."""
    net, reference = network_and_reference("repvgg_nano")
    x, labels = batch(0)
    our_step(net, rule=rule)(Tensor(x), Tensor(labels))
    torch_step(reference)(x, labels, RATES[0])
    state = reference.state_dict()
    vectors = {parameter.name for parameter in net.trainable_params() if parameter.ndim == 1}
    identity = {name for name in vectors if name.endswith("rbr_identity.gamma")}
    for name in vectors - identity if rule == "all" else identity:
        assert relative_difference(weights(net)[name], state[torch_reference.torch_name(name)]) > 1e-4, name


@compat
@pytest.mark.parametrize("kind", ["repvgg_nano", "plus"])
def test_another_classifier(pynative_mode, kind):
    net, x = randomise_bn(build(kind)), Tensor(images())
    net.metadata = {"class_names": ["name"] * CLASSES, "dataset": "mine"}
    holder = ms.nn.SequentialCell(net)  # in a cell of one's own the names have a prefix
    before = weights(net)
    features = net.set_train(False).forward_features(x)
    pooled = net.forward_head(features, pre_logits=True)
    np.testing.assert_allclose(array(pooled), array(features).mean((2, 3)), rtol=1e-5, atol=1e-6)
    assert pooled.shape == (2, net.num_features)
    net.reset_classifier(3)
    after = weights(net)
    assert list(after) == list(before)
    changed = [name for name in before if not np.array_equal(before[name], after[name])]
    assert changed == [name for name in before if "linear." in name]
    assert [cell(x).shape for cell in (net, holder)] == [(2, 3)] * 2
    assert not net.linear.training
    assert net.set_train().linear.training
    np.testing.assert_allclose(array(net.linear(pooled)), array(net.set_train(False)(x)), rtol=1e-4, atol=1e-5)
    assert net.metadata == {"dataset": "mine"}
    assert mindrepvgg.to_deploy(net)(x).shape == (2, 3)


def test_a_compiled_network_answers_with_its_new_classifier(graph_mode):
    net, x = build("repvgg_nano").set_train(False), Tensor(images())
    assert net(x).shape == (2, CLASSES)
    net.reset_classifier(3)
    assert net(x).shape == (2, 3)


@pytest.mark.parametrize("count", [0, -1, 2.0, "3", True, None])
def test_a_number_of_classes_that_cannot_be(count):
    with pytest.raises(UserError, match="num_classes"):
        build("repvgg_nano").reset_classifier(count)
