"""The site of the documents: its menu, the tables that are made from the code, and its links. `make docs` builds it."""

import importlib.util

import pytest
import yaml
from support import ROOT

import mindrepvgg
from mindrepvgg.cli import verbs
from mindrepvgg.recipe.schema import KEYS

pytestmark = pytest.mark.compat

CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def named(nav):
    """The pages that a part of the menu names."""
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in named(part)]


@pytest.fixture(scope="module")
def hooks():
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_menu_names_each_page_once():
    pages = [str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")]
    menu = named(CONFIG["nav"])
    outside = [page.removeprefix("repository/") for page in menu if page.startswith("repository/")]
    assert sorted(menu) == sorted([*pages, *(f"repository/{page}" for page in outside)])
    assert all((ROOT / page).is_file() for page in outside)


def test_the_site_is_built_where_git_ignores_it():
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert f"/{CONFIG['site_dir'].partition('/')[0]}/" in ignored


def test_every_key_verb_and_public_name_is_in_a_table(hooks):
    keys = hooks.recipe_keys()
    assert all(f"| `{name}` |" in keys for name in KEYS)
    assert "| `lr` | `0.1` | a number above 0 | highest learning rate |" in keys
    options = hooks.verb_options()
    assert all(f"### {verb}\n" in options for verb in verbs.VERBS)
    assert "| `--show_config` |  | print every key" in options
    assert "`--weight_decay`" not in options
    names = hooks.python_names()
    assert all(f"::: mindrepvgg.{name}\n" in f"{names}\n" for name in mindrepvgg.__all__)


def test_links_out_of_the_folder_lead_into_the_site(hooks):
    turned = lambda text, uri: hooks._LINK.sub(lambda link: hooks._turned(link, uri), text)  # noqa: E731
    assert turned("[a](../CONTRIBUTING.md#b)", "x.md") == "[a](repository/CONTRIBUTING.md#b)"
    assert turned("[a](../../CONTRIBUTING.md)", "zh/x.md") == "[a](../repository/CONTRIBUTING.md)"
    assert turned("[a](docs/x.md)", "repository/README.md") == "[a](../x.md)"
    assert turned("[a](y.md) ![b](pictures/c.png)", "x.md") == "[a](y.md) ![b](pictures/c.png)"
    assert turned("[a](https://a.org/b) [c](#d)", "x.md") == "[a](https://a.org/b) [c](#d)"


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ('<script src="https://a.org/b.js"></script>', True),
        ("<link rel=stylesheet href=//a.org/b.css>", True),
        ("@import url('https://a.org/b.css');", True),
        ('<a href="https://a.org">a</a> <img src="b.png">', False),
    ],
)
def test_what_would_be_fetched_from_another_server_is_refused(hooks, tmp_path, text, refused):
    (tmp_path / "a.html").write_text(text, encoding="utf-8")
    if refused:
        with pytest.raises(hooks.PluginError, match=r"a\.html"):
            hooks.on_post_build({"site_dir": str(tmp_path)})
    else:
        hooks.on_post_build({"site_dir": str(tmp_path)})
