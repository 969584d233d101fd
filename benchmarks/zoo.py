"""Write the model zoo's table into docs/weights.md, from the package's own tables.

python benchmarks/zoo.py
"""

from pathlib import Path

from sections import replace_section

from mindrepvgg.models.summary import summarise
from mindrepvgg.models.variants import DEPLOY, TRAIN, find, published_models
from mindrepvgg.text import markdown_table
from mindrepvgg.weights.released import AUTHORS_TOP1, PAPERS_TOP1, SOURCES, released_of

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "weights.md"


def zoo() -> str:
    """The table: a line a network of the papers, counted for ImageNet's 1,000 classes at 224x224."""
    names = [source.name for source in SOURCES]
    headings = ["network", "parameters (M), train / deploy", "MACs (G), train / deploy", "recipe", "authors", *names]
    return markdown_table(headings, [_row(name, names) for name in published_models()])


def _row(model, sources):
    counted = summarise(find(model), aux_heads=False)
    train, deploy = counted.total(TRAIN), counted.total(DEPLOY)
    released = {item.source: item for item in released_of(model)}
    default = next(iter(released), None)
    cells = [PAPERS_TOP1.get(model) or _published(AUTHORS_TOP1.get(model))]
    for source in sources:
        item = released.get(source)
        text = _published(item and (item.top1, item.image_size))
        cells.append(f"**{text}**" if source == default else text)
    recipes = [f"configs/{folder}{model}.yaml" for folder in ("", "mindcv/")]
    recipe = ", ".join(f"[{place}](../{place})" for place in recipes if (ROOT / place).exists())
    params, macs = ((getattr(train, key), getattr(deploy, key)) for key in ("params", "macs"))
    return (
        f"`{model}`",
        " / ".join(f"{count / 1e6:.2f}" for count in params),
        " / ".join(f"{count / 1e9:.2f}" for count in macs),
        recipe or "-",
        *cells,
    )


def _published(value):
    """A top-1, and the picture's side where it is not the usual one."""
    if value is None:
        return "-"
    top1, side = value
    return f"{top1:.2f}" if side == 224 else f"{top1:.2f} at {side}"


if __name__ == "__main__":
    replace_section(PAGE, "zoo", zoo())
