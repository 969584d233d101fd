"""Notebooks, read and run without a program for notebooks."""

import json


def code_cells(path):
    """The source of every cell of code of a notebook."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run_cells(cells):
    """Run cells of code from the first to the last in one namespace, which is returned."""
    names = {}
    for number, cell in enumerate(cells):
        exec(compile(cell, f"cell {number}", "exec"), names)
    return names
