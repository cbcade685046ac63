"""Scores do not depend on what can be drawn."""

import pytest
import torch
from matplotlib.figure import Figure

from millrace.data.samples import open_dataset
from millrace.evaluation.trained_model import TrainedModel
from millrace.figures.style import attempt
from millrace.systems.base import resolve
from millrace.systems.registry import get_model, kind_of

NAMES = ["gino", "gfno", "regression", "aurora", "smart"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_figures_that_cannot_be_drawn_are_warnings(
    experiments, tmp_path, monkeypatch, capsys, name
) -> None:
    definition, files = experiments[name]
    settings = {key: value for key, value in definition["model"].items() if key != "name"}
    spec, kind = get_model(name), kind_of(name)
    dataset = open_dataset(kind.name, files, definition["data"], torch.device("cpu"), None)
    module = spec.build(spec.config.parse(settings, "model"), dataset)
    run = resolve(kind.evaluation).run
    scores, draw = run(TrainedModel(spec, module.eval(), dataset), files, None)
    assert {"validation", "test"} <= scores.keys()

    def fail(*arguments, **options):
        raise ValueError("three nodes in a line")

    monkeypatch.setattr(Figure, "savefig", fail)
    monkeypatch.setattr(Figure, "colorbar", fail)
    draw(tmp_path)
    assert not list(tmp_path.rglob("*.png"))
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) > 2
    assert all(line.startswith(f"WARNING: {tmp_path}") for line in warnings)
    assert all("is not drawn: three nodes in a line" in line for line in warnings)


def test_a_figure_that_must_be_there_tells_why_it_is_not_drawn(tmp_path, capsys) -> None:
    with attempt(tmp_path / "training.png", required=True):
        raise ValueError("no epochs")
    assert (tmp_path / "training.png").stat().st_size > 1000
    assert "training.png is not drawn: no epochs" in capsys.readouterr().err


def full_disk():
    raise OSError("no space left on device")


def test_a_full_disk_is_no_reason_to_go_on(tmp_path) -> None:
    with pytest.raises(OSError, match="no space"), attempt(tmp_path / "training.png"):
        full_disk()
