"""Corpora of faults: files from strangers, as hostile or as broken as they come, and the doors that are given them.

A module a corpus. Each has `DOORS`, functions of a text that a user types, by name; and `cases()`, a strategy of
hypothesis for `cases.Case`. The default suite draws a few cases of each, always the same (test_corpora.py).
`make fuzz MINUTES=10` draws as many as there is time for, in child processes with limits (__main__.py, watch.py,
worker.py), and keeps what it finds.
"""

CORPORA = ("recipes", "descriptions", "checkpoints", "onnx_files", "file_names", "pictures")
