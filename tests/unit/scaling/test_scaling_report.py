"""The page, the tables and the figures say what the analysis says."""

import csv
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from PIL import Image
from synthetic import CPU, series

from millrace.scaling import history
from millrace.scaling.analysis import analyse
from millrace.scaling.export import extrap_text, readme_table
from millrace.scaling.quantity import format_number, format_scaled, format_seconds
from millrace.scaling.report import write_report
from millrace.scaling.settings import AnalysisSettings

pytestmark = pytest.mark.slow  # what they share takes twenty seconds

SIX = ("n1_gpu1", "n1_gpu2", "n2_gpu1", "n2_gpu2", "n1_gpu4", "n4_gpu1")
SETTINGS = AnalysisSettings(
    layouts=SIX,
    links={"inter": {"latency_s": 2e-5, "bytes_per_s": 1e10}},
    epochs={"model_a": 50, "model_bb": 50},
    prices={"gpu": 1.5},
    queue_hours={"n1_gpu4": 0.5},
    draws=300,
)


class Page(HTMLParser):
    """Elements with their attributes, the text of each ``data`` element, and text by device."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.numbers, self.stack, self.text = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if tag == "data":
            self.numbers.append([attributes, ""])
        self.stack.append((tag, attributes))

    def handle_endtag(self, tag):
        while self.stack and self.stack.pop()[0] != tag:
            pass

    def handle_data(self, data):
        if self.stack and self.stack[-1][0] == "data":
            self.numbers[-1][1] += data
        device = next(
            (a["data-device"] for t, a in self.stack if t == "section" and "data-device" in a), None
        )
        if not any(tag in ("svg", "style") for tag, _ in self.stack):
            self.text.append((device, data))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    cpu = {"device": CPU, "sample_s": 1e-2}
    runs = series(SIX[:2], **cpu) + series(SIX[:2], experiment="model_bb", **cpu)
    runs += series((*SIX, "n1_gpu8"), flops_per_sample=1e10)
    analysis = analyse(runs, SETTINGS)
    history.remember(analysis, folder / "history")
    analysis = history.compare(
        analyse([_at(run, "ffff") for run in runs], SETTINGS), folder / "history"
    )
    names = ("html", "csv", "json", "txt", "figures", "md")
    paths = {name: folder / f"report.{name}" for name in names}
    write_report(analysis, *paths.values())
    text = paths["html"].read_text()
    return SimpleNamespace(
        analysis=analysis, folder=folder, html=text, page=Page(text),
        json=json.loads(paths["json"].read_text()), **{f"{k}_path": v for k, v in paths.items()},
    )  # fmt: skip


def _at(run, commit):
    return replace(run, provenance={"git_revision": commit})


def looked_up(content, path):
    for part in path.split("."):
        content = content[int(part)] if isinstance(content, list) else content[part]
    return content


def test_numbers_of_the_page_are_those_of_the_json(made) -> None:
    assert len(made.page.numbers) > 500
    for attributes, text in made.page.numbers:
        key = attributes["data-key"]
        value = looked_up(made.json, key)
        assert float(attributes["value"]) == value, key
        parent, _, side = key.rpartition(".")
        if side in ("value", "low", "high"):
            assert attributes["data-label"] == looked_up(made.json, parent)["label"], key
        assert as_read(text) == pytest.approx(
            math.ceil(value) if ".crossover." in key else value, rel=0.006, abs=last_place(text)
        ), (key, text)


def as_read(text):
    """The number that a reader sees."""
    if text == "any":
        return 0.0
    digits = re.match(r"[+-]?[\d,]+(\.\d+)?(e[+-]?\d+)?", text)[0]
    return float(digits.replace(",", "")) * _unit(text)


def last_place(text):
    """Half of the last place of numbers with fixed decimals; others have three digits."""
    fixed = {"%": 0.5e-3, "×": 0.5e-2}.get(text.split()[-1], 0.0)
    return 1.01 * (0.5e-3 if re.fullmatch(r"\d\.\d{3}", text) else fixed) + 1e-9


def _unit(text):
    units = {
        "%": 1e-2,
        "ms": 1e-3,
        "µs": 1e-6,
        "min": 60,
        "h": 3600,
        "kB": 1e3,
        "MB": 1e6,
        "GB": 1e9,
    }
    units |= {"GB/s": 1e9, "MB/s": 1e6, "kB/s": 1e3}
    return units.get(text.split()[-1], 1)


def test_every_layout_of_every_study_is_on_the_page_with_its_label(made) -> None:
    rows = [
        (a["data-layout"], a["data-label"])
        for t, a in made.page.elements
        if t == "tr" and "data-label" in a
    ]
    for study in made.analysis.studies:
        for one in study.layouts:
            assert rows.count((one.layout, one.label)) >= 3
    steps = [
        n[0]
        for n in made.page.numbers
        if re.fullmatch(r"studies\.\d+\.layouts\.\d+\.step\.value", n[0]["data-key"])
    ]
    assert len(steps) == sum(len(study.layouts) for study in made.analysis.studies)
    assert {n["data-label"] for n in steps} == {"measured", "modelled", "extrapolated"}


def test_the_page_needs_nothing_else(made) -> None:
    for tag, attributes in made.page.elements:
        assert tag not in ("script", "link", "img", "iframe", "object")
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith("#"), attributes
    assert "@import" not in made.html
    assert not re.search(r"url\((?!#)", made.html)


def test_ids_are_unique_and_what_refers_to_them_is_there(made) -> None:
    ids = [a["id"] for _, a in made.page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    referred = set(re.findall(r"url\(#([^)]+)\)", made.html)) | set(
        re.findall(r'href="#([^"]+)"', made.html)
    )
    assert referred <= set(ids)


def test_cpu_results_stand_apart_from_gpu_results(made) -> None:
    assert [
        a["data-device"] for t, a in made.page.elements if t == "section" and "data-device" in a
    ] == ["gpu", "cpu"]
    text = {kind: " ".join(t for d, t in made.page.text if d == kind) for kind in ("gpu", "cpu")}
    assert "CPU processes" not in text["gpu"]
    assert "Test GPU" not in text["cpu"]
    keys = {study.key: study.device_kind for study in made.analysis.studies}
    for tag, attributes in made.page.elements:
        if tag == "article":
            assert attributes["data-device"] == keys[attributes["data-study"]]
    drawn = sorted(path.name for path in (made.figures_path).glob("*.svg"))
    assert {name.split("-")[0].split("_")[0] for name in drawn} == {"cpu", "gpu"}


def test_captions_say_where_numbers_come_from(made) -> None:
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", made.html)
    figures = [a for t, a in made.page.elements if t == "figure"]
    assert len(captions) == len(figures) == 16  # five a study, and one over both CPU studies
    assert all(
        re.search("measured|modelled|extrapolated", text, re.IGNORECASE) for text in captions
    )


def test_figures_are_vector_and_raster(made) -> None:
    stems = {path.stem for path in (made.figures_path).iterdir()}
    assert len(stems) == 16
    for stem in stems:
        with Image.open(made.figures_path / f"{stem}.png") as image:
            assert len(image.convert("RGB").getcolors(1 << 20)) > 15
        assert (made.figures_path / f"{stem}.pdf").read_bytes().startswith(b"%PDF")
        assert "<svg" in (made.figures_path / f"{stem}.svg").read_text()
    assert len(made.html) < 3_000_000


def test_refusals_and_sentences_are_told(made) -> None:
    for study in made.analysis.studies:
        assert study.recommendation.sentence.split(":")[0] in made.html
        for refusal in study.refusals:
            assert f'data-refused="{refusal.what}"' in made.html
    assert (
        "fit of USL: 2 distinct numbers of ranks were measured (1, 2), and a fit needs 4."
        in made.html
    )
    assert "contradicted" in made.html
    assert 'data-law="USL"' in made.html


def test_changes_are_on_the_page(made) -> None:
    rows = [a for t, a in made.page.elements if t == "tr" and "data-study" in a]
    assert len(rows) == len(made.analysis.changes) == 11
    assert "unchanged" in made.html


@pytest.mark.parametrize(
    ("options", "kind", "told"),
    [
        ({"slow": [1, 1, 1.4, 1]}, "imbalance", "n1_gpu4 loses most to imbalance"),
        ({"data_s": 12e-3}, "data", "n1_gpu4 loses most to waiting for data"),
        ({"communication_s": 20e-3}, "communication", "n1_gpu4 loses most to communication"),
    ],
)
def test_the_page_diagnoses_a_run(tmp_path, options, kind, told) -> None:
    runs = series(["n1_gpu1"], **{k: v for k, v in options.items() if k == "data_s"})
    analysis = analyse(runs + series(["n1_gpu4"], **options), AnalysisSettings(draws=300))
    files = [tmp_path / name for name in ("r.html", "r.csv", "r.json", "r.txt", "figures", "r.md")]
    write_report(analysis, *files)
    page = Page(files[0].read_text())
    sentences = {
        a["data-layout"]: a["data-kind"]
        for t, a in page.elements
        if t == "p" and a.get("data-sentence") == "diagnosis"
    }
    assert sentences["n1_gpu4"] == kind
    assert told in files[0].read_text()


def test_csv_has_a_label_beside_every_number(made) -> None:
    rows = list(csv.DictReader(made.csv_path.open()))
    assert len(rows) == sum(len(study.layouts) for study in made.analysis.studies)
    results = [one for study in made.analysis.studies for one in study.layouts]
    for row, one in zip(rows, results, strict=True):
        assert float(row["efficiency"]) == one.factors.efficiency.value
        assert float(row["step_s_low"]) == one.step.low
        assert row["step_s_label"] == row["label"] == one.label
        for name in row:
            if name.endswith("_label"):
                assert bool(row[name]) == bool(row[name.removesuffix("_label")]), name


def test_extrap_text_is_in_its_grammar(made) -> None:
    text = made.txt_path.read_text()
    assert text == extrap_text(made.analysis)
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert lines[:3] == ["PARAMETER p", "POINTS ( 1 ) ( 2 )", "METRIC time"]
    regions = text.split("REGION ")[1:]
    assert len(regions) == 2  # the two CPU studies have the same points
    assert "# left out, measured at other p: gpu-model-a-strong-Test-GPU-40-GB" in text
    for region in regions:
        data = re.findall(r"^DATA (.+)$", region, re.MULTILINE)
        assert len(data) == 2
        assert all(re.fullmatch(r"\d+\.\d+( \d+\.\d+){2}", line) for line in data), (
            "one value a run"
        )


def test_readme_table_keeps_devices_apart(made) -> None:
    lines = readme_table(made.analysis).splitlines()
    assert lines == made.md_path.read_text().splitlines()
    assert len(lines) == 2 + sum(len(study.layouts) for study in made.analysis.studies)
    assert lines[2].startswith("| GPU: Test GPU 40 GB | `model_a` | strong | `n1_gpu1` |")
    assert lines[2].endswith("| 100.0% | measured |")
    assert {line.split("|")[1].split(":")[0].strip() for line in lines[2:]} == {"GPU", "CPU"}
    assert {line.count("|") for line in lines} == {8}


def test_numbers_are_written_for_people() -> None:
    assert [format_seconds(s) for s in (0.0, 2e-6, 0.0123, 1.5, 90, 300, 7200, 1e5)] == [
        "0 s", "2 µs", "12.3 ms", "1.5 s", "90 s", "5 min", "2 h", "27.8 h",
    ]  # fmt: skip
    assert [format_number(x) for x in (1234.5, 999.4, 0.01234)] == ["1,234", "999", "0.0123"]
    assert format_scaled(1.25e10, "B/s") == "12.5 GB/s"
