"""Notebooks of the documentation, executed on files of a test that lie where those of the demo would."""

import json
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
from plans import ROOT

NOTEBOOKS = ROOT / "docs/notebooks"
MOST_LINES = 20


def execute(name, given, monkeypatch, tmp_path):
    """Execute the cells of a notebook in one namespace; ``given`` are files by the paths that it names.

    Returns the namespace, after a figure was drawn.
    """
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") for cell in cells), "commit notebooks without outputs"
    lines = [line for text in code for line in text.splitlines() if line.strip()]
    assert len(lines) < MOST_LINES
    text = "\n".join(code)
    for path, source in given.items():
        assert f'"{path}' in text
        place = tmp_path / path
        place.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if Path(source).is_dir() else shutil.copy
        copy(source, place)
    monkeypatch.chdir(tmp_path)
    plt.close("all")
    space = {}
    for cell in code:
        exec(compile(cell, f"{name}.ipynb", "exec"), space)
    assert plt.gcf().axes
    plt.close("all")
    return space
