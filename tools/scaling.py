"""What data-parallel training on many cards is limited by, computed from published figures and stated assumptions.

    python tools/scaling.py                                    # the tables of docs/scaling.md
    python tools/scaling.py --write docs/scaling.md            # put them there, between its markers
    python tools/scaling.py --host_gb_per_s 18 --step_ms 19.5  # with figures of one's own

Nothing here was measured on an NPU.
"""

import dataclasses
import math
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT))  # run from a checkout, whether the package is installed or not

from mindrepvgg import cli, layout, variants
from mindrepvgg.files import replace_section

CARDS = (8, 16, 32, 64, 128, 256, 512, 1024)
NETWORKS = ("repvgg_a1", "repvgg_b3")
_IMAGENET = 1_281_167
_FLOAT32, _FLOAT16 = 4, 2

# MindSpore's "Benchmarks" page, 0.2.0-alpha: batch 32 a card, images a second by cards. torchvision's parameter count.
RESNET50 = 32, {1: 1787, 8: 13689, 16: 27090}
_RESNET50_BYTES = _FLOAT32 * 25_557_032


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """What the tables rest on; docs/scaling.md gives the source of each.

    Bandwidths are what a card moves in one direction, in 10^9 bytes a second, after protocol losses. step_ms: the
    measured step of repvgg_a1 on one host. backward_share: of a step that the backward pass takes. bucket_mb: the
    gradients of one fused all-reduce. decode_per_core: images a second.
    """

    cards_per_host: int = 8
    host_gb_per_s: float = 24.0
    network_gb_per_s: float = 10.0
    host_hop_us: float = 10.0
    network_hop_us: float = 20.0
    batch_size: int = 32
    step_ms: float = 20.70
    backward_share: float = 2 / 3
    bucket_mb: float = 16.0
    image_kb: float = 110.0
    decode_per_core: tuple[float, float] = (500.0, 700.0)


def gradient_bytes(model: str, item: int = _FLOAT32) -> int:
    """What one step sends of a network in train form, at `item` bytes a number."""
    return item * variants.cost(variants.find(model), deploy=False).params


def checkpoint_bytes(model: str) -> tuple[int, int]:
    """(a network in train form, with the state training needs to go on): parameters, BN statistics, momenta."""
    shapes = layout.parameter_shapes(variants.find(model), deploy=False)
    network = _FLOAT32 * sum(math.prod(shape) for shape in shapes.values())
    return network, network + gradient_bytes(model)


def all_reduce_ms(size: float, cards: int, given: Assumptions) -> float:
    """Time of one all-reduce of `size` bytes: a ring inside a host, halving and doubling between hosts.

    In each host the cards reduce-scatter; the i-th cards of all hosts then all-reduce their share, size / cards a host,
    each over its own port; in the host again an all-gather. Between h hosts, 2 (h - 1) / h of the share cross a port in
    2 log2(h) steps. cards: on one host any number, on several whole hosts, a power of two of them.
    """
    local = min(cards, given.cards_per_host)
    hosts = cards // local
    seconds = 2 * (local - 1) / local * size / (given.host_gb_per_s * 1e9) + 2 * (local - 1) * given.host_hop_us / 1e6
    if hosts > 1:
        share = size / local
        seconds += 2 * (hosts - 1) / hosts * share / (given.network_gb_per_s * 1e9)
        seconds += 2 * math.log2(hosts) * given.network_hop_us / 1e6
    return 1e3 * seconds


def one_host_step_ms(model: str, given: Assumptions) -> float:
    """The step on one host: given for repvgg_a1, for another network in proportion to its multiply-accumulates."""
    macs = [variants.cost(variants.find(name), deploy=False).macs for name in (model, "repvgg_a1")]
    return given.step_ms * macs[0] / macs[1]


def waiting_ms(size: float, cards: int, overlap: bool, compute_ms: float, given: Assumptions) -> float:
    """How long a step waits for its gradients, `size` bytes.

    overlap: False: for all of them. True: those of all buckets but the last, which come at the very end, are sent
    while the backward pass, a share of `compute_ms`, is still at work; what does not fit beside it is waited for.
    """
    if cards == 1 or not overlap:
        return all_reduce_ms(size, cards, given)
    buckets = math.ceil(size / (given.bucket_mb * 1e6))
    bucket = all_reduce_ms(size / buckets, cards, given)
    return bucket + max(0.0, (buckets - 1) * bucket - given.backward_share * compute_ms)


def step_ms(model: str, cards: int, overlap: bool, given: Assumptions) -> float:
    """The step on `cards`, such that it is `one_host_step_ms` on one host: that step's waiting is its own already."""
    size, whole = gradient_bytes(model), one_host_step_ms(model, given)
    compute = whole
    for _ in range(50):  # the share to hide behind depends on the computation, which is what waiting leaves of the step
        compute = whole - waiting_ms(size, given.cards_per_host, overlap, compute, given)
    return compute + waiting_ms(size, cards, overlap, compute, given)


def images_per_second(model: str, cards: int, overlap: bool, given: Assumptions) -> float:
    """Of all the cards together."""
    return cards * given.batch_size / step_ms(model, cards, overlap, given) * 1e3


def efficiency(model: str, cards: int, overlap: bool, given: Assumptions) -> float:
    """Images a second a card, over the same on one host."""
    return one_host_step_ms(model, given) / step_ms(model, cards, overlap, given)


def decode_cores(model: str, given: Assumptions) -> tuple[float, float]:
    """Cores a host needs to decode what its cards train on: (at the higher rate a core, at the lower)."""
    rate = images_per_second(model, given.cards_per_host, False, given)
    return tuple(rate / per_core for per_core in sorted(given.decode_per_core, reverse=True))


def tables(given: Assumptions) -> str:
    """The markdown between the markers of docs/scaling.md."""
    return "\n\n".join(
        (_sizes(), _all_reduces(given), _efficiencies(given), _batches(given), _hosts(given), _published(given))
    )


def _table(head, rows):
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def _sizes():
    rows = []
    for model in NETWORKS:
        parameters = variants.cost(variants.find(model), deploy=False).params
        megabytes = (gradient_bytes(model), gradient_bytes(model, _FLOAT16), *checkpoint_bytes(model))
        rows.append([model, f"{parameters:,}", *(f"{size / 1e6:.1f} MB" for size in megabytes)])
    head = ("", "parameters", "gradients, float32", "gradients, float16", "checkpoint", "with training state")
    return f"**Sizes.** Computed from the layout, exact.\n\n{_table(head, rows)}"


def _all_reduces(given):
    columns = {
        f"{model}, float{8 * item}": gradient_bytes(model, item) for model in NETWORKS for item in (_FLOAT32, _FLOAT16)
    }
    columns["8 bytes"] = 8
    rows = [[str(cards), *(f"{all_reduce_ms(size, cards, given):.2f}" for size in columns.values())] for cards in CARDS]
    return f"**One all-reduce of all gradients, ms.**\n\n{_table(('cards', *columns), rows)}"


def _efficiencies(given):
    columns = [(model, overlap) for model in NETWORKS for overlap in (False, True)]
    rows = []
    for cards in CARDS:
        row = [str(cards)]
        for model, overlap in columns:
            rate = images_per_second(model, cards, overlap, given)
            row.append(f"{rate:,.0f} ({efficiency(model, cards, overlap, given):.0%})")
        rows.append(row)
    head = ("cards", *(f"{model}, {'overlapped' if overlap else 'not overlapped'}" for model, overlap in columns))
    return f"**Images a second, and efficiency over one host; gradients in float32.**\n\n{_table(head, rows)}"


def _batches(given):
    rows = []
    for cards in CARDS:
        batch = cards * given.batch_size
        steps = _IMAGENET // batch
        seconds = [f"{steps * step_ms(model, cards, False, given) / 1e3:.1f}" for model in NETWORKS]
        rows.append([str(cards), f"{batch:,}", f"{0.1 * batch / 256:g}", f"{steps:,}", *seconds])
    head = ("cards", "global batch", "lr, linear", "steps an epoch", *(f"s an epoch, {model}" for model in NETWORKS))
    return f"**Batch, learning rate, and epochs of ImageNet; not overlapped.**\n\n{_table(head, rows)}"


def _hosts(given):
    rows = []
    for model in NETWORKS:
        rate = images_per_second(model, given.cards_per_host, False, given)
        fewest, most = decode_cores(model, given)
        read = rate * given.image_kb / 1e6
        rows.append([model, f"{rate:,.0f}", f"{fewest:.1f} to {most:.1f}", f"{read:.2f}", f"{128 * read:.0f}"])
    head = ("", "images/s a host", "cores for decoding, a host", "GB/s read, a host", "GB/s read, 128 hosts")
    return f"**Feeding the cards.**\n\n{_table(head, rows)}"


def _published(given):
    batch, rates = RESNET50
    one_card = 1e3 * batch / rates[1]
    rows = []
    for cards, rate in rates.items():
        predicted = []
        for overlap in (False, True):
            step = one_card + waiting_ms(_RESNET50_BYTES, cards, overlap, one_card, given)
            predicted.append(f"{one_card / step:.0%}")
        rows.append([str(cards), f"{rate:,}", f"{rate / rates[1] / cards:.0%}", *predicted])
    head = ("cards", "images/s, published", "efficiency, published", "computed, not overlapped", "computed, overlapped")
    return f"**The same arithmetic against MindSpore's published ResNet-50 v1.5.**\n\n{_table(head, rows)}"


def main(argv=None):
    """Print the tables, or write them into a document."""
    parser = cli.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace what stands between the markers in FILE")
    for field in dataclasses.fields(Assumptions):
        if field.name != "decode_per_core":
            parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default, metavar="NUMBER")
    arguments = vars(parser.parse_args(argv))
    path = arguments.pop("write")
    text = tables(Assumptions(**arguments))
    if path is None:
        print(text)
        return 0
    replace_section(path, "tables", text)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
