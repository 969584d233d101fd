"""What a benchmark is asked for."""

from support.golden import ACCURACY

from mindrepvgg.measure.settings import PUBLISHED_TOP1, Contestant, Settings
from mindrepvgg.models import variants


def test_accuracies_are_of_the_released_weights_alone():
    """A checkpoint may be called as a network is; and an own network has none unless it is given."""
    settings = Settings("RepVGG-A0", ["repvgg_b1", "x.ckpt"], baselines="resnet18", top1="resnet18=70,x.ckpt=61.5")
    contestants = [
        Contestant(name, "deploy", "mindspore", "float32", 1) for name in ("repvgg_a0", "repvgg_b1", "x.ckpt")
    ]
    contestants.append(Contestant("resnet18", "", "mindspore", "float32", 1))
    assert list(map(settings.published, contestants)) == [72.41, None, 61.5, 70]
    names = [name for name in variants.list_models() if name.startswith("repvgg_") and ACCURACY.get(name)]
    assert {name: ACCURACY[name][0] for name in names} == PUBLISHED_TOP1
