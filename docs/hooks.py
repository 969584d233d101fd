"""What `make docs` adds to the pages: tables that are made from the code, files of the repository, and a last check.

mkdocs calls the functions `on_...`. Where a table is to stand, a page has the line `<!-- generated: NAME -->`, a name
in `TABLES`. On GitHub the line is not seen, so the page says in words what stands there.
"""

import posixpath
import re
from argparse import SUPPRESS
from pathlib import Path
from unittest import mock

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File
from pymdownx.slugs import slugify

import mindrepvgg
from mindrepvgg import errors, reparam
from mindrepvgg.cli import entry, verbs
from mindrepvgg.recipe.schema import KEYS
from mindrepvgg.text import markdown_table, plain

ROOT = Path(__file__).resolve().parents[1]
DOCS = "docs"

# Where the repository's files that lie outside of docs/ are in the site. Pages link to them as GitHub wants it.
OUTSIDE = "repository"
_LINK = re.compile(r"(!?\[[^\]]*\]\()([^)#\s]+)(#[^)\s]*)?(\))")
_GENERATED = re.compile(r"<!-- generated: ([\w ]+) -->")
# What the functions of `api` return is imported there, for type checkers; a recipe's keys have a page of their own.
_RESULT = re.compile(r"(?m)^    from (mindrepvgg\.(?!recipe)[\w.]+) import (\w+)$(?=[\s\S]*\n    StrPath =)")

# What a browser would fetch from another server: not links that a reader clicks on.
_FETCHED = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed)\b[^>]*\bsrc=["']?(?:https?:)?//[^"'\s>]+"""
    r"""|<link\b(?![^>]*rel=["']?canonical)[^>]*\bhref=["']?(?:https?:)?//[^"'\s>]+"""
    r"""|@import\s+(?:url\()?["']?(?:https?:)?//[^"')\s]+|\burl\(["']?(?:https?:)?//[^"')\s]+"""
)


def on_config(config):
    """Headings get the anchors that GitHub gives them, so that one link does for both."""
    config["mdx_configs"].setdefault("toc", {})["slugify"] = slugify(case="lower")


def on_files(files, config):
    """Take in the files outside of docs/ that the menu and the pages name, and those that these link to."""
    wanted = [uri.removeprefix(f"{OUTSIDE}/") for uri in _named(config["nav"]) if uri.startswith(f"{OUTSIDE}/")]
    for page in files.documentation_pages():
        wanted += _outside(page.content_string, _place(page.src_uri))
    while wanted:
        path = wanted.pop()
        if files.get_file_from_path(f"{OUTSIDE}/{path}") is None:
            added = File.generated(config, f"{OUTSIDE}/{path}", abs_src_path=str(ROOT / path))
            files.append(added)
            wanted += _outside(added.content_string, path) if added.is_documentation_page() else []


def on_page_markdown(markdown, page, config, files):
    """Fill in the tables, and turn links that leave docs/."""
    markdown = _GENERATED.sub(lambda found: TABLES[found[1]](), markdown)
    return _LINK.sub(lambda link: _turned(link, page.file.src_uri), markdown)


def on_post_build(config):
    """Refuse pages that would fetch something from another server.

    Raises:
        PluginError: one does; the message names both.
    """
    pages = [path for path in Path(config["site_dir"]).rglob("*") if path.suffix in (".html", ".css")]
    found = {path.name: match[0] for path in pages if (match := _FETCHED.search(path.read_text(encoding="utf-8")))}
    if found or not pages:
        raise PluginError(f"the site's pages must fetch nothing from another server: {found or 'there are no pages'}")


def _named(nav):
    """The pages that a part of the menu names."""
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [uri for part in parts for uri in _named(part)]


def _place(uri):
    """Where a page of the site lies in the repository."""
    return uri.removeprefix(f"{OUTSIDE}/") if uri.startswith(f"{OUTSIDE}/") else f"{DOCS}/{uri}"


def _outside(text, place):
    """The files of the repository, not in docs/, that a page links to."""
    targets = [target for _, target, _, _ in _LINK.findall(text) if "://" not in target]
    paths = {posixpath.normpath(posixpath.join(posixpath.dirname(place), target)) for target in targets}
    return sorted(path for path in paths if not path.startswith(f"{DOCS}/") and (ROOT / path).is_file())


def _turned(link, uri):
    before, target, anchor, after = link.groups()
    if "://" in target or target.startswith("mailto:"):
        return link[0]
    path = posixpath.normpath(posixpath.join(posixpath.dirname(_place(uri)), target))
    there = path.removeprefix(f"{DOCS}/") if path.startswith(f"{DOCS}/") else f"{OUTSIDE}/{path}"
    return f"{before}{posixpath.relpath(there, posixpath.dirname(uri) or '.')}{anchor or ''}{after}"


def recipe_keys():
    """Every key of a recipe, a table for each section."""
    sections = {}
    for name, key in KEYS.items():
        default = plain(key.default)
        shown = "empty" if default == "" else _yaml(default)
        expected = key.kind.expected.replace(" (in yaml, quote what looks like a number or a date)", "")
        sections.setdefault(key.section, []).append((f"`{name}`", shown, expected, key.comment))
    headings = "key", "default", "what it may be", "what it is for"
    return "\n\n".join(
        f"## {section.capitalize()}\n\n{markdown_table(headings, [_cells(row) for row in rows])}"
        for section, rows in sections.items()
    )


def verb_options():
    """Every verb with its options, in the groups of `mindrepvgg --help`."""
    parts = []
    for group, members in verbs.GROUPS.items():
        parts.append(f"## {group.capitalize()}")
        parts += [_verb(verb) for verb in members]
    return "\n\n".join(parts)


def _verb(verb):
    parser = _parser(verb)
    about = parser.description.strip().partition("\n\n")[0].replace("\n", " ")
    rows = []
    for action in parser._actions:
        if action.help in (None, SUPPRESS) or action.dest == "help" or (verb == "train" and action.dest in KEYS):
            continue
        names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{action.metavar or action.dest}`"
        takes = action.metavar or ("" if action.nargs == 0 else ", ".join(map(str, action.choices or [action.dest])))
        default = "the machine's cores" if action.dest == "num_parallel_workers" else action.default
        rows.append(
            _cells(
                (
                    names,
                    takes if action.option_strings else "",
                    action.help % {"default": default, "const": action.const},
                )
            )
        )
    keys = (
        "Beside these, every [key of a recipe](recipe-keys.md) is an option: `--KEY VALUE`." if verb == "train" else ""
    )
    examples = re.findall(r"(?m)^    (.*)$", parser.description)
    shown = "```bash\n" + "\n".join(examples) + "\n```" if examples else ""
    table = markdown_table(("option", "value", "what it does"), rows)
    return "\n\n".join(filter(None, (f"### {verb}", about, shown, table, keys)))


def _parser(verb):
    """The argument parser of a verb: caught where the verb would read its arguments."""
    found = []

    def caught(parser, *_):
        found.append(parser)
        raise SystemExit(0)

    with mock.patch.object(entry.ArgumentParser, "parse_args", caught):
        verbs.main([verb])
    return found[0]


def python_names():
    """The directives of mkdocstrings for every public name, and for what the functions return and raise."""
    homes = mindrepvgg._HOMES
    groups = {
        "The verbs": [name for name in mindrepvgg.__all__ if homes[name] in ("api", "deployment.comparison")],
        "Networks, blocks and files": [
            name for name in mindrepvgg.__all__ if homes[name] not in ("api", "deployment.comparison")
        ],
    }
    text = [
        f"## {title}\n\n" + "\n\n".join(f"::: mindrepvgg.{name}" for name in names) for title, names in groups.items()
    ]
    results = _RESULT.findall((ROOT / "mindrepvgg" / "api.py").read_text(encoding="utf-8"))
    text.append("## What the verbs give\n\n" + "\n\n".join(f"::: {module}.{name}" for module, name in results))
    text.append("## Predicting again and again\n\n::: mindrepvgg.deployment.predictor.Predictor")
    text.append("## Errors\n\n" + "\n\n".join(f"::: mindrepvgg.errors.{name}" for name in _errors()))
    others = [name for name in reparam.__all__ if name not in mindrepvgg.__all__]
    text.append("## mindrepvgg.reparam\n\n" + "\n\n".join(f"::: mindrepvgg.reparam.{name}" for name in others))
    return "\n\n".join(text)


def _errors():
    """The names of the exceptions, in the order of the module."""
    return [name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)]


TABLES = {"recipe keys": recipe_keys, "verbs": verb_options, "python": python_names}


def _yaml(value):
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else str(value)
    return f"`{text}`"


def _cells(row):
    return [str(cell).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*") for cell in row]
