"""The table of scores in a real browser: at the width of a desk, searched, filtered and sorted."""

import json
import random
import re
import tarfile
from pathlib import Path

import pytest

from millrace.evaluation.summary import summarise

pytestmark = pytest.mark.slow
FIXTURE = Path(__file__).parents[2] / "fixtures/ad8fee3/project.tar.xz"
# Does what a reader does and writes into the document what is to be seen then.
PROBE = """<script>
const rows = () => [...document.querySelectorAll("tbody tr")].filter(row => row.offsetParent);
const set = (id, value) => { const box = document.getElementById(id);
  box[box.type === "checkbox" ? "checked" : "value"] = value;
  for (const kind of ["input", "change"]) box.dispatchEvent(new Event(kind, { bubbles: true })); };
const wide = [...document.querySelectorAll(".scroll")].filter(one => one.scrollWidth > one.clientWidth + 1);
const seen = { rows: rows().length, page: document.documentElement.scrollWidth, wide: wide.length };
set("words", "whole 2T");
seen.searched = rows().map(row => row.cells[0].textContent.trim() + row.cells[2].textContent);
set("words", ""); set("system", "traffic"); seen.system = rows().length;
set("system", ""); set("within", "asked"); seen.asked = rows().length;
set("within", "all"); set("marked", true); seen.marked = rows().length; set("marked", false);
const table = document.querySelector("table");
const column = [...table.rows[0].cells].findIndex(cell => cell.textContent === "RMSE, 24 h");
const values = () => [...table.tBodies[0].rows].map(row => Number(row.cells[column].dataset.value));
for (const order of ["up", "down"]) {
  table.rows[0].cells[column].firstElementChild.click();
  seen[order] = values();
}
const shown = () => [...table.rows[0].cells].filter(cell => cell.offsetParent).length;
seen.few = shown();
table.closest("section").querySelector(".columns input:not(:checked)").click();
seen.more = shown();
set("wide", true); seen.all = shown();
document.body.dataset.seen = JSON.stringify(seen);
</script>"""


def varied(value, rng):
    """Numbers as another seed might have them."""
    if isinstance(value, dict):
        return {k: one if k == "lead_hours" else varied(one, rng) for k, one in value.items()}
    if isinstance(value, list):
        return [varied(one, rng) for one in value]
    return value * rng.uniform(0.7, 1.4) if isinstance(value, float) else value


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Three seeds of every system with names as long as they get, one of them not asked for."""
    folder = tmp_path_factory.mktemp("page")
    with tarfile.open(FIXTURE) as file:
        file.extractall(folder, filter="data")
    rng, paths = random.Random(0), []
    for number, path in enumerate(sorted(folder.glob("results/evaluate/*/*/seed0/metrics.json"))):
        run = json.loads(path.read_text())
        run["experiment"] += "_of_the_northern_basin_fine_tuned"
        run["layout"] = "n1_gpu4-or-n4_gpu1" if number % 2 else run["layout"]
        hours = {"gpu_hours": 1234.5, "cpu_hours": 0.0, "devices": ["4 × NVIDIA H200"]}
        for seed in range(3):
            made = run | {key: varied(run[key], rng) for key in ("test", "validation")}
            made |= {"seed": seed, "identity": f"{number} {seed}"}
            made["training"] = {"parameters": 867127, "epochs": 12, "seconds": 123456.0, **hours}
            made["training"]["stalled"] = "the loss does not move" if seed == number == 0 else None
            paths.append(folder / f"{number}_{seed}.json")
            paths[-1].write_text(json.dumps(made))
    asked = [path for path in paths if not path.stem.endswith("2")]
    others = [path for path in paths if path.stem.endswith("2")]
    outputs = [folder / name for name in ("t.html", "t.csv", "t.png")]
    summarise(asked, [], *outputs, others=others)
    probed = folder / "probed.html"
    probed.write_text(outputs[0].read_text().replace("</body>", f"{PROBE}</body>"))
    return probed


@pytest.fixture(scope="module")
def seen(browser, page):
    done = browser(
        "--enable-logging=stderr", "--v=0", "--window-size=1280,900", "--dump-dom", page.as_uri()
    )
    assert "CONSOLE" not in done.stderr, done.stderr[-2000:]
    found = re.search(r'data-seen="([^"]*)"', done.stdout)[1]
    return json.loads(found.replace("&quot;", '"'))


def test_every_table_fits_1280_pixels_at_first(seen):
    assert seen["page"] <= 1280
    assert seen["wide"] == 0


def test_words_in_any_order_and_case_find_their_rows(seen):
    [found] = seen["searched"]
    assert found.startswith("whole_of_the_northern_basin")
    assert found.endswith("2t")


def test_rows_are_filtered_by_system_by_configuration_and_by_mark(seen):
    assert seen["system"] == 1
    assert seen["asked"] == seen["rows"] == 15, "of the same names, other seeds"
    assert seen["marked"] == 3


def test_a_click_sorts_and_another_one_turns_the_order(seen):
    assert seen["up"] == sorted(seen["up"])
    assert seen["down"] == seen["up"][::-1]
    assert len(set(seen["up"])) > 3


def test_columns_are_added_one_by_one_or_all_at_once(seen):
    assert seen["few"] < seen["more"] == seen["few"] + 1 < seen["all"]
