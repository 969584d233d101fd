"""Write the model zoo, in full into docs/weights.md and in short into README.md, from the package's own tables.

python benchmarks/zoo.py
"""

from pathlib import Path

from sections import replace_section

from mindrepvgg.models.summary import summarise
from mindrepvgg.models.variants import DEPLOY, TRAIN, find, published_models
from mindrepvgg.text import markdown_table
from mindrepvgg.weights.released import AUTHORS_TOP1, PAPERS_TOP1, SOURCES, released_of

ROOT = Path(__file__).parents[1]
COSTS = ["parameters (M), train / deploy", "MACs (G), train / deploy"]

# One of each size, and the largest with squeeze-and-excitation.
SHORT = ("repvgg_a0", "repvgg_a1", "repvgg_a2", "repvgg_b1", "repvgg_b3", "repvgg_d2se")


def zoo() -> str:
    """The table: a line a network of the papers, counted for ImageNet's 1,000 classes at 224x224."""
    names = [source.name for source in SOURCES]
    rows = [_row(name, names) for name in published_models()]
    return markdown_table(["network", *COSTS, "recipe", "authors", *names], rows)


def short_zoo() -> str:
    """A few lines of it, with the top-1 of the weights that a network's name alone stands for."""
    rows = []
    for model in SHORT:
        item = released_of(model)[0]
        rows.append((f"`{model}`", *_costs(model), f"{_published((item.top1, item.image_size))} ({item.source})"))
    return markdown_table(["network, weights", *COSTS, "top-1 on ImageNet, as published"], rows)


PAGES = {ROOT / "docs" / "weights.md": zoo, ROOT / "README.md": short_zoo}


def _row(model, sources):
    released = {item.source: item for item in released_of(model)}
    default = next(iter(released), None)
    cells = [PAPERS_TOP1.get(model) or _published(AUTHORS_TOP1.get(model))]
    for source in sources:
        item = released.get(source)
        text = _published(item and (item.top1, item.image_size))
        cells.append(f"**{text}**" if source == default else text)
    recipes = [f"configs/{folder}{model}.yaml" for folder in ("", "mindcv/")]
    recipe = ", ".join(f"[{place}](../{place})" for place in recipes if (ROOT / place).exists())
    return (f"`{model}`", *_costs(model), recipe or "-", *cells)


def _costs(model):
    """Parameters and multiply-accumulates of both forms."""
    counted = summarise(find(model), aux_heads=False)
    forms = [counted.total(form) for form in (TRAIN, DEPLOY)]
    return (
        " / ".join(f"{total.params / 1e6:.2f}" for total in forms),
        " / ".join(f"{total.macs / 1e9:.2f}" for total in forms),
    )


def _published(value):
    """A top-1, and the picture's side where it is not the usual one."""
    if value is None:
        return "-"
    top1, side = value
    return f"{top1:.2f}" if side == 224 else f"{top1:.2f} at {side}"


if __name__ == "__main__":
    for page, table in PAGES.items():
        replace_section(page, "zoo", table())
