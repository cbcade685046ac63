"""What the figures of scaling draw."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from synthetic import CPU, series

from millrace.figures import style
from millrace.scaling import figures as scaling
from millrace.scaling.analysis import analyse
from millrace.scaling.settings import AnalysisSettings

SIX = ("n1_gpu1", "n1_gpu2", "n2_gpu1", "n2_gpu2", "n1_gpu4", "n4_gpu1")


@pytest.fixture
def drawn(monkeypatch):
    figures = []

    def record(*args, **kwargs):
        figures.append(Figure(*args, **kwargs))
        return figures[-1]

    monkeypatch.setattr(style, "Figure", record)
    return figures


@pytest.fixture(scope="module")
def gpu():
    (study,) = analyse(
        series((*SIX, "n1_gpu8")), AnalysisSettings(layouts=("n1_gpu16",), draws=300)
    ).studies
    return study


@pytest.fixture(scope="module")
def cpu():
    links = {"inter": {"latency_s": 2e-5, "bytes_per_s": 1e10}}
    (study,) = analyse(
        series(SIX[:2], device=CPU), AnalysisSettings(layouts=SIX, links=links, draws=300)
    ).studies
    return study


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("name", ["throughput", "efficiency", "step_parts", "cost_and_time"])
def test_every_figure_names_the_labels_it_holds(name, cpu, gpu, drawn, tmp_path) -> None:
    for study in (cpu, gpu):
        getattr(scaling, name)(study, tmp_path / "f.svg")
        assert {one.label for one in study.layouts} <= set(legend(drawn[-1]))
    assert "modelled" not in legend(drawn[-1]), "none of the GPU layouts is"


def test_efficiencies_and_intervals_are_those_of_the_study(gpu, drawn, tmp_path) -> None:
    scaling.efficiency(gpu, tmp_path / "f.png")
    (axes,) = drawn[0].axes
    heights = [line.get_ydata()[0] for line in axes.lines if line.get_marker() in "oD"]
    assert heights == [one.factors.efficiency.value for one in gpu.layouts]
    ends = np.array([s.get_segments()[0][:, 1] for s in axes.collections])
    known = [one.factors.efficiency for one in gpu.layouts if one.layout != gpu.base]
    np.testing.assert_allclose(ends, [(q.low, q.high) for q in known])


def test_claimed_bands_are_drawn_for_gpus_only(cpu, gpu, drawn, tmp_path) -> None:
    scaling.efficiency(gpu, tmp_path / "f.png")
    scaling.efficiency(cpu, tmp_path / "f.png")
    bands = [
        [p for p in figure.axes[0].patches if str(p.get_gid()).startswith("claim")]
        for figure in drawn
    ]
    assert [(b.get_y(), round(b.get_y() + b.get_height(), 6)) for b in bands[0]] == [
        (0.95, 0.99),
        (0.85, 0.95),
    ]
    assert bands[1] == []
    assert "claimed" not in legend(drawn[1])


def test_the_ideal_line_is_proportional_to_ranks(gpu, drawn, tmp_path) -> None:
    scaling.throughput(gpu, tmp_path / "f.pdf")
    lines = {line.get_label(): line.get_xydata() for line in drawn[0].axes[0].lines}
    (x0, y0), (x1, y1) = lines["ideal"]
    assert (x0, x1) == (1, 16)
    assert y1 / y0 == pytest.approx(16)
    assert lines["USL fit (modelled)"][:, 0].max() == 16


def test_bars_are_as_long_as_steps(cpu, drawn, tmp_path) -> None:
    scaling.step_parts(cpu, tmp_path / "f.svg")
    ends = {}
    for bar in drawn[0].axes[0].patches:
        row = round(bar.get_y() + bar.get_height() / 2)
        ends[row] = max(ends.get(row, 0), bar.get_x() + bar.get_width())
    steps = [one.step.value * 1e3 for one in cpu.layouts]
    np.testing.assert_allclose([ends[i] for i in range(len(steps))], steps, rtol=0.005)
    hatches = {bar.get_hatch() for bar in drawn[0].axes[0].patches}
    assert len(hatches) == 3, "measured, modelled and extrapolated bars look different"


def test_communication_curve_has_points_and_the_model(gpu, drawn, tmp_path) -> None:
    scaling.communication(gpu, tmp_path / "f.svg")
    labels = legend(drawn[0])
    assert "inter-node, 4 ranks (measured)" in labels
    assert "α-β model (modelled)" in labels
    points = [line for line in drawn[0].axes[0].lines if line.get_marker() == "o"]
    assert sum(len(line.get_xdata()) for line in points) == len(gpu.bandwidth)


def test_names_in_the_cost_figure_keep_clear_of_each_other(gpu, drawn, tmp_path) -> None:
    scaling.cost_and_time(gpu, tmp_path / "f.png")
    figure = drawn[0]
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in figure.axes[0].texts]
    assert len(boxes) == len(gpu.layouts)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_several_files_of_one_figure(cpu, tmp_path) -> None:
    scaling.efficiency(cpu, tmp_path / "f.svg", also=(".pdf", ".png"))
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".pdf", ".png", ".svg"]


def test_overall_figure_has_all_studies(cpu, gpu, drawn, tmp_path) -> None:
    scaling.overall_efficiency([gpu, gpu], tmp_path / "f.svg")
    points = [line for line in drawn[0].axes[0].lines if line.get_marker() in ("o", "D")]
    assert len(points) == 2 * len(gpu.layouts)
