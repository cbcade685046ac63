from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from PIL import Image, ImageSequence

from millrace.errors import ConfigError
from millrace.figures import style, training
from millrace.figures.film import Film
from millrace.systems.groundwater.figures import animation, comparison, maps, sections
from millrace.systems.groundwater.scores import FieldMetrics
from millrace.systems.groundwater.sections import SectionGrid


@pytest.fixture
def drawn(monkeypatch):
    """Give the list of figures made, to look at what was drawn."""
    figures = []

    def record(*args, **kwargs):
        figures.append(Figure(*args, **kwargs))
        return figures[-1]

    monkeypatch.setattr(style, "Figure", record)
    monkeypatch.setattr(animation, "Figure", record)
    return figures


@pytest.fixture(scope="module")
def aquifer():
    """120 columns of 6 slices at UTM coordinates, a salt wedge and a shifted prediction of it."""
    rng = np.random.default_rng(0)
    plan = np.column_stack([rng.uniform(0, 2000, 120), rng.uniform(0, 900, 120)])
    slices = 6
    xy = np.tile(plan, (slices, 1))
    z = np.repeat(np.linspace(5, -40, slices), 120) + 0.01 * xy[:, 0]
    time = np.cumsum(rng.uniform(0.3, 0.6, 8))
    front = 700 - 8 * z + 100 * np.sin(time / 2)[:, None]
    truth = 35_000 / (1 + np.exp((xy[:, 0] - front) / 100))
    prediction = 35_000 / (1 + np.exp((xy[:, 0] - front - 40) / 110))
    return SimpleNamespace(
        coords=np.column_stack([xy + np.array([334_000, 6_251_000]), z]),
        group=np.repeat([0, 0, 1, 1, 2, 2], 120),
        time=time,
        truth=truth,
        prediction=prediction,
    )


def result_of(aquifer):
    metrics = FieldMetrics(["head", "mass_concentration"], leads=4)
    truth = np.stack([aquifer.truth[1:5].T] * 2, axis=-1)[None]
    prediction = np.stack([aquifer.prediction[1:5].T] * 2, axis=-1)[None]
    metrics.update(truth, prediction, np.broadcast_to(truth[:, :, :1], truth.shape))
    return metrics.result()


def check_image(path, colours=30):
    """The image has ink on paper: many colours, white margins, and a good part drawn."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    height, width, _ = pixels.shape
    assert width > 500
    assert height > 200
    flat = pixels.reshape(-1, 3)
    assert np.unique(flat, axis=0).shape[0] >= colours
    assert 0.03 < (flat != 255).any(axis=1).mean() < 0.95
    # Nothing is cut off: the outermost rows and columns are blank.
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == 255).all()


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_scatter(tmp_path, drawn, aquifer):
    path = tmp_path / "new_folder" / "scatter.png"
    comparison.scatter(aquifer.truth, aquifer.prediction, "mass_concentration", "mg/L", path)
    check_image(path)
    axes = drawn[0].axes[0]
    assert axes.collections[0].get_array().sum() == aquifer.truth.size
    assert axes.get_xlabel() == "True mass concentration (mg/L)"
    assert axes.get_xlim() == axes.get_ylim()
    np.testing.assert_array_equal(*axes.lines[0].get_data())
    r2 = 1 - np.mean((aquifer.prediction - aquifer.truth) ** 2) / aquifer.truth.var()
    assert f"R² = {r2:.4f}" in axes.get_title("left")


def test_scatter_of_a_constant_says_undefined(tmp_path, drawn):
    comparison.scatter(np.ones(50), np.ones(50), "head", "m", tmp_path / "constant.png")
    assert "R² = undefined" in drawn[0].axes[0].get_title("left")


def test_time_series(tmp_path, drawn, aquifer):
    node = comparison.most_variable(aquifer.truth, 3, np.arange(720))
    path = tmp_path / "series.png"
    issued = np.repeat([aquifer.time[0] - 0.5, aquifer.time[3]], 4)
    truth, prediction = aquifer.truth[:, node], aquifer.prediction[:, node]
    comparison.time_series(
        aquifer.time,
        truth,
        prediction,
        truth + 1,
        ["a", "b", "c"],
        "mass_concentration",
        "mg/L",
        path,
        issued,
    )
    check_image(path)
    panels = drawn[0].axes
    label = (
        f"Time (d); forecasts of up to {(aquifer.time - issued).max():.3g} d, one after the other"
    )
    assert panels[-1].get_xlabel() == label
    (lines,) = panels[0].collections
    assert sorted({x for (x, _), _ in lines.get_segments()}) == [
        aquifer.time[0] - 0.5,
        aquifer.time[3],
    ]
    legend = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert legend == ["Ground truth", "Prediction", "Persistence", "Issue time"]
    assert [axes.get_title("left") for axes in panels] == ["a", "b", "c"]
    assert [len(axes.lines) for axes in panels] == [3, 3, 3]
    np.testing.assert_array_equal(panels[1].lines[0].get_ydata(), aquifer.truth[:, node[1]])
    for line, values in zip(panels[2].lines[1:], (prediction[:, 2], truth[:, 2] + 1), strict=True):
        first, last = np.split(line.get_ydata(), [4])
        np.testing.assert_array_equal([*first, *last[1:]], values)
        assert np.isnan(last[0]), "forecasts of two issue times are joined"
        assert line.get_marker() == ".", "a forecast of one step cannot be seen"


def test_most_variable():
    series = np.sin(np.arange(20.0))[:, None] * [1, 5, 3, 4, 2] + [100, 0, 50, 0, 0]
    assert comparison.most_variable(series, 3, range(5)).tolist() == [1, 3, 2]
    # Nodes 1 and 3 are above each other.
    assert comparison.most_variable(series, 3, column=[7, 8, 9, 8, 6]).tolist() == [1, 2, 4]


def test_error_by_lead(tmp_path, drawn, aquifer):
    """With a gap where the error is undefined."""
    result = result_of(aquifer)["mass_concentration"]
    result["by_lead"]["rmse"][2] = None
    path = tmp_path / "lead.png"
    comparison.error_by_lead(result, [0.5, 1, 1.5, 2], "mass_concentration", "mg/L", path)
    check_image(path)
    (axes,) = drawn[0].axes
    for line, name in zip(axes.lines, ("rmse", "persistence_rmse"), strict=True):
        expected = np.array(result["by_lead"][name], dtype=float)
        np.testing.assert_array_equal(line.get_ydata(), expected)
        assert line.get_xdata().tolist() == [0.5, 1, 1.5, 2]
    assert np.isnan(axes.lines[0].get_ydata()[2])
    assert axes.get_ylabel() == "RMSE (mg/L)"
    assert axes.get_title("left") == "Mass concentration"


def test_error_map_combines_columns_and_uses_local_kilometres(tmp_path, drawn, aquifer):
    x, y, _ = aquifer.coords.T
    error = np.sqrt(((aquifer.prediction - aquifer.truth) ** 2).mean(axis=0))
    path = tmp_path / "map.png"
    maps.error_map(x, y, error, np.zeros(720), "mass_concentration", "mg/L", path)
    check_image(path)
    mesh = drawn[0].axes[0].collections[0]
    of_columns = np.sqrt((error.reshape(6, 120) ** 2).mean(axis=0))
    np.testing.assert_allclose(np.sort(mesh.get_array()), np.sort(of_columns))
    corner = mesh._triangulation.x.min(), mesh._triangulation.y.min()
    assert corner == pytest.approx((0, 0))
    assert mesh._triangulation.x.max() == pytest.approx(np.ptp(x) / 1e3)
    assert drawn[0].axes[-1].get_ylabel() == "RMSE of mass concentration (mg/L)"
    where = f"East (km), from X = {x.min():.0f} m, Y = {aquifer.coords[:, 1].min():.0f} m"
    assert (drawn[0].axes[0].get_xlabel(), drawn[0].axes[0].get_ylabel()) == (where, "North (km)")


def test_error_map_by_slice_group_shares_the_colours(tmp_path, drawn, aquifer):
    x, y, _ = aquifer.coords.T
    error = np.where(aquifer.group == 2, 5.0, 1.0)
    path = tmp_path / "groups.png"
    maps.error_map(x, y, error, aquifer.group, "head", "m", path)
    check_image(path)
    meshes = [axes.collections[0] for axes in drawn[0].axes[:3]]
    assert [mesh.get_array().max() for mesh in meshes] == [1, 1, 5]
    assert len({mesh.get_clim() for mesh in meshes}) == 1


def test_mesh_leaves_a_bay_open():
    x, y = (a.ravel() for a in np.meshgrid(np.arange(21.0), np.arange(21.0)))
    land = (x < 7) | (x > 13) | (y < 7)
    mesh = maps.triangulation(x[land], y[land])
    centroid_x, centroid_y = (a[mesh.get_masked_triangles()].mean(axis=1) for a in (mesh.x, mesh.y))
    assert not ((centroid_x > 8) & (centroid_x < 12) & (centroid_y > 8)).any()
    assert mesh.get_masked_triangles().shape[0] >= 2 * (6 * 20 * 2 + 8 * 6)


def test_patch_map(tmp_path, drawn, aquifer):
    x = aquifer.coords[:, 0]
    patch = 2 * aquifer.group + (x > np.median(x))
    path = tmp_path / "patches.png"
    maps.patch_map(aquifer.coords, patch, path, slice_group=aquifer.group)
    check_image(path)
    assert texts(drawn[0]) == ["0", "1", "2", "3", "4", "5"]
    for axes in drawn[0].axes:
        (cells,) = [c for c in axes.collections if isinstance(c, PolyCollection)]
        assert np.unique(cells.get_facecolor(), axis=0).shape[0] == 2
        west, east = (text.xy[0] for text in axes.texts)
        assert west < (np.median(x) - x.min()) / 1e3 < east


def test_maps_of_many_nodes_show_some_of_them(tmp_path, drawn, aquifer, monkeypatch):
    monkeypatch.setattr(maps, "DRAWN", 50)
    patch = 2 * aquifer.group + (aquifer.coords[:, 0] > np.median(aquifer.coords[:, 0]))
    maps.patch_map(aquifer.coords, patch, tmp_path / "p.png", slice_group=aquifer.group)
    assert texts(drawn[0]) == ["0", "1", "2", "3", "4", "5"]
    for axes in drawn[0].axes:
        assert len(axes.lines[0].get_xdata()) == 50


def test_control_volumes_fill_the_mesh(aquifer):
    x, y = aquifer.coords[:120, 0] / 1e3, aquifer.coords[:120, 1] / 1e3
    mesh = maps.triangulation(x, y)
    cell, owner = maps.control_volumes(mesh)

    def area(polygon):
        a, b = polygon, np.roll(polygon, -1, axis=1)
        return 0.5 * np.abs((a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]).sum(axis=1)).sum()

    triangle = mesh.get_masked_triangles()
    corners = np.column_stack([mesh.x - x[0], mesh.y - y[0]])[triangle]
    assert area(cell - [x[0], y[0]]) == pytest.approx(area(corners))
    np.testing.assert_allclose(cell[:, 0], np.column_stack([mesh.x, mesh.y])[owner])


def section_of(aquifer):
    inside = np.abs(aquifer.coords[:, 1] - 6_251_450) < 150
    return np.flatnonzero(inside), aquifer.coords[inside, 0] - 334_000, aquifer.coords[inside, 2]


def test_cross_section(tmp_path, drawn, aquifer):
    node, s, z = section_of(aquifer)
    path = tmp_path / "section.png"
    truth, prediction = aquifer.truth[3, node], aquifer.prediction[3, node]
    name, ends = ("mass_concentration", "mg/L"), [[100, 200], [300.4, 400]]
    sections.cross_section(s, z, 12.5, truth, prediction, *name, path, ends, 11.0)
    check_image(path)
    panels = drawn[0].axes[:3]
    fields = [axes.collections[0] for axes in panels]
    assert fields[0].get_clim() == fields[1].get_clim()
    low, high = fields[2].get_clim()
    assert low == -high
    np.testing.assert_allclose(
        fields[2].get_array(), fields[1].get_array() - fields[0].get_array(), atol=1e-9
    )
    assert panels[0].get_title("right") == "12.50 d, issued at 11.00 d"
    titles = [axes.get_title("left") for axes in panels[:3]]
    assert titles == ["Ground truth", "Prediction", "Prediction − ground truth"]
    assert panels[2].get_xlabel().endswith("(m), from X = 100, Y = 200 to X = 300, Y = 400")
    labels = {axes.get_ylabel() for axes in drawn[0].axes[3:]}
    assert labels == {"Mass concentration (mg/L)", "Difference (mg/L)"}


def test_cross_section_of_a_perfect_constant(tmp_path, aquifer):
    node, s, z = section_of(aquifer)
    one = np.ones(node.size)
    sections.cross_section(s, z, 0.0, one, one, "head", "m", tmp_path / "section.pdf")
    assert (tmp_path / "section.pdf").read_bytes().startswith(b"%PDF")


def test_section_animation(tmp_path, drawn, aquifer):
    node, s, z = section_of(aquifer)
    path = tmp_path / "animation.gif"
    truth, prediction = aquifer.truth[:, node], aquifer.prediction[:, node]
    animation.section_animation(
        s, z, aquifer.time, truth, prediction, "mass_concentration", "mg/L", path
    )
    with Image.open(path) as gif:
        assert gif.n_frames == 8
        assert gif.info["duration"] == 200
        assert gif.info["loop"] == 0
        frames = [np.asarray(f.convert("RGB")) for f in ImageSequence.Iterator(gif)]
    assert path.stat().st_size < 8 * 3e6 / 40
    assert np.unique(frames[0].reshape(-1, 3), axis=0).shape[0] > 60
    assert (frames[0][0] == 255).all()
    changed = [(a != b).any(axis=-1).mean() for a, b in pairwise(frames)]
    assert min(changed) > 0.001  # the title and the front move ...
    assert max(changed) < 0.5  # ... and the panels do not
    assert drawn[0].axes[0].get_title("right") == f"{aquifer.time[-1]:.2f} d"
    # The scale covers all frames, not the first only.
    low, high = drawn[0].axes[0].collections[0].get_clim()
    assert low <= truth[1:].min() + 200
    assert high >= truth[1:].max() - 200


def test_frames_of_an_animation_are_those_of_a_figure_drawn_anew(aquifer):
    node, s, z = section_of(aquifer)
    grid = SectionGrid.around(s, z)
    truth, prediction = (grid.interpolate(x[:, node]) for x in (aquifer.truth, aquifer.prediction))

    def panels(number):
        fig = Figure(figsize=sections.SECTION_SIZE, dpi=60, layout="constrained")
        of = sections.SectionPanels(fig, grid, truth, prediction, "head", "m")
        of.show(truth[number], prediction[number], aquifer.time[number], None)
        return fig, of

    with style.style():
        fig, moved = panels(0)
        film = Film(fig, moved.moving)
        film.frame()
        moved.show(truth[5], prediction[5], aquifer.time[5], None)
        canvas = FigureCanvasAgg(panels(5)[0])
        canvas.draw()
        np.testing.assert_array_equal(film.frame(), np.asarray(canvas.buffer_rgba())[..., :3])


def history(epochs, session_starts):
    return [
        {
            "epoch": epoch,
            "step": 10 * epoch,
            "train_loss": 1 / epoch,
            "validation_loss": 1.1 / epoch + 0.01 * epoch if epoch % 2 else None,
            "learning_rate": 1e-3 * 0.95 ** (epoch // 5),
            "session": sum(epoch >= start for start in session_starts),
        }
        for epoch in range(1, epochs + 1)
    ]


def test_training_curves(tmp_path, drawn):
    path = tmp_path / "training.png"
    records = history(30, session_starts=(11, 21))
    training.training_curves(records, path)
    check_image(path)
    top, bottom = drawn[0].axes
    for axes in (top, bottom):
        marks = [line.get_xdata()[0] for line in axes.lines if line.get_gid() == "resumed"]
        assert marks == [10, 20]
    assert (top.get_yscale(), bottom.get_yscale()) == ("log", "linear")  # rates differ by 1.3
    train, validation, best = top.lines[:3]
    np.testing.assert_array_equal(train.get_ydata(), [1 / e for e in range(1, 31)])
    assert validation.get_xdata().tolist() == list(range(1, 31, 2))
    assert best.get_xdata()[0] == min(range(1, 31, 2), key=lambda e: 1.1 / e + 0.01 * e)
    assert bottom.lines[0].get_ydata()[-1] == records[-1]["learning_rate"]
    labels = [label.get_text() for label in top.get_yticklabels()]
    assert {"0.1", "1"} <= {*labels}, "no round numbers"


def test_training_curves_without_validation_and_with_repeated_epochs(tmp_path, drawn):
    first, second = history(8, ()), history(12, ())
    for record in second:
        record["session"] = 1
    records = first + second[5:]  # the epochs 6 to 8 were lost and done again
    for record in records:
        record["validation_loss"] = None
    training.training_curves(records, tmp_path / "training.svg")
    marks = [x for x in drawn[0].axes[0].lines if x.get_gid() == "resumed"]
    assert [mark.get_xdata()[0] for mark in marks] == [5]
    assert len(drawn[0].axes[0].lines) == 2


def test_skill_summary_shows_every_seed(tmp_path, drawn):
    table = {
        "experiment": ["gino"] * 6 + ["gfno"] * 6,
        "variable": ["head", "head", "head", "pressure", "pressure", "pressure"] * 2,
        "seed": [0, 1, 2] * 4,
        "skill": [0.5, 0.5, 0.5, 0.1, -0.2, 0.3, -1, -0.9, None, None, None, float("nan")],
    }
    path = tmp_path / "skill.png"
    training.skill_summary(table, path)
    check_image(path)
    head, pressure = drawn[0].axes
    zero, gino, gino_mean, gfno, gfno_mean = head.lines
    assert zero.get_xdata() == [0, 0]
    assert gino.get_xdata().tolist() == [0.5, 0.5, 0.5]
    assert np.diff(gino.get_ydata()).min() > 0.1  # equal skills do not hide each other
    assert gino_mean.get_xdata()[0] == pytest.approx(0.5)
    assert gfno.get_xdata().tolist() == [-1, -0.9]
    assert gfno_mean.get_xdata()[0] == pytest.approx(-0.95)
    assert [text.get_text() for text in pressure.texts] == ["no skill defined"]
    assert head.get_xlim() == pressure.get_xlim()


def test_many_variables_are_put_in_rows(tmp_path, drawn):
    names = [f"z_{level}" for level in range(8)]
    table = {"experiment": ["aurora"] * 8, "variable": names, "skill": np.linspace(-1, 0.6, 8)}
    training.skill_summary(table, tmp_path / "skill.png")
    axes = drawn[0].axes
    assert [one.get_title("left") for one in axes] == [f"z {level}" for level in range(8)]
    assert len({one.get_position().y0 for one in axes}) == 2
    assert [one.lines[1].get_xdata()[0] for one in axes] == table["skill"].tolist()
    assert {len(one.lines) for one in axes} == {2}, "a mean of one seed"
    assert drawn[0].get_supxlabel() == "Skill over persistence (one seed)"


def test_other_suffixes_are_refused_before_anything_is_drawn(tmp_path, aquifer):
    with pytest.raises(ConfigError, match=r"ends in \.png, \.svg, \.pdf"):
        comparison.scatter([1, 2], [1, 2], "head", "m", tmp_path / "scatter.jpg")
    node, s, z = section_of(aquifer)
    with pytest.raises(ConfigError, match=r"ends in \.gif"):
        animation.section_animation(
            s, z, aquifer.time, aquifer.truth[:, node], aquifer.truth[:, node], "head", "m",
            tmp_path / "section.mp4",
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_a_failed_figure_leaves_no_file(tmp_path, monkeypatch):
    path = tmp_path / "old.png"
    path.write_bytes(b"kept")

    def full_disk(self, part, **kwargs):
        part.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(Figure, "savefig", full_disk)
    with pytest.raises(OSError, match="no space"):
        comparison.scatter([1, 2], [1, 2], "head", "m", path)
    assert [p.name for p in tmp_path.iterdir()] == ["old.png"]
    assert path.read_bytes() == b"kept"


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_same_figure_gives_the_same_file(tmp_path, aquifer, suffix):
    paths = [tmp_path / f"{name}.{suffix}" for name in "ab"]
    for path in paths:
        comparison.error_by_lead(result_of(aquifer)["head"], [1, 2, 3, 4], "head", "m", path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize(
    ("variable", "unit", "label"),
    [
        ("mass_concentration", "mg/L", "Mass concentration (mg/L)"),
        ("head", "", "Head"),
        ("RMSE", "m", "RMSE (m)"),
        ("u", "m/s", "u (m/s)"),
        ("tas", "K", "tas (K)"),
        ("u_850", "m/s", "u 850 (m/s)"),
    ],
)
def test_axis_labels(variable, unit, label):
    assert style.axis_label(variable, unit) == label


def test_large_tick_labels_have_separators(tmp_path, drawn):
    value = np.linspace(-20_000, 70_000, 50)
    comparison.scatter(value, value, "mass_concentration", "mg/L", tmp_path / "scatter.png")
    labels = [tick.get_text() for tick in drawn[0].axes[0].get_xticklabels()]
    assert "20,000" in labels
    assert "−20,000" in labels
