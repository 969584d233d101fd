"""A small network in MindCV's registry, which costs next to nothing."""

from mindspore import nn, ops

from mindrepvgg.runtime.optional import import_optional

NAME = "tiny_residual"


def _conv_bn(channels_in, channels_out, size, stride=1):
    conv = nn.Conv2d(channels_in, channels_out, size, stride, pad_mode="pad", padding=size // 2)
    return conv, nn.BatchNorm2d(channels_out)


class TinyResidual(nn.Cell):
    """Three convolutions with BN, the last two beside a shortcut; attributes as ResNets have them."""

    def __init__(self, num_classes=1000, in_channels=3, drop_rate=0.0):
        super().__init__()
        self.conv1, self.bn1 = _conv_bn(in_channels, 8, 3, 2)
        self.conv2, self.bn2 = _conv_bn(8, 8, 3)
        self.conv3, self.bn3 = _conv_bn(8, 8, 1)
        self.dropout = nn.Dropout(p=drop_rate) if drop_rate else nn.Identity()
        self.classifier = nn.Dense(8, num_classes)

    def construct(self, x):
        x = ops.relu(self.bn1(self.conv1(x)))
        x = ops.relu(x + self.bn3(self.conv3(ops.relu(self.bn2(self.conv2(x))))))
        return self.classifier(self.dropout(x.mean((2, 3))))


def tiny_residual(pretrained=False, num_classes=1000, in_channels=3, **options):
    """The function that MindCV's registry calls."""
    assert not pretrained
    return TinyResidual(num_classes, in_channels, **options)


def register():
    """Put the network into MindCV's registry; its name there."""
    registry = import_optional("mindcv.models.registry", None, "a test")
    if not registry.is_model(NAME):
        registry.register_model(tiny_residual)
    return f"mindcv/{NAME}"
