"""The page in a real browser: at the width of a desk and of a phone, and printed."""

import re

import pytest
from PIL import Image
from synthetic import CPU, series
from test_scaling_report import SETTINGS, SIX

from millrace.scaling.analysis import analyse
from millrace.scaling.report import write_report

pytestmark = pytest.mark.slow
# Says in the document itself how wide it came out, and which pictures and tables stick out.
PROBE = """<script>
const wide = document.documentElement.clientWidth;
const out = [...document.querySelectorAll("body *")].filter(e => {
  const box = e.getBoundingClientRect();
  return !e.closest("svg") && box.width > 0 && box.right > wide + 1;
}).map(e => e.tagName);
const shown = [...document.querySelectorAll("svg")].filter(e => e.getBoundingClientRect().height > 50);
document.body.dataset.probe = [wide, document.documentElement.scrollWidth, out.length, shown.length]
  .join(" ");
</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    runs = series(SIX) + series(("n1_gpu1", "n1_gpu2"), experiment="model_bb", device=CPU)
    names = ("html", "csv", "json", "txt", "figures", "md")
    files = [folder / f"report.{name}" for name in names]
    write_report(analyse(runs, SETTINGS), *files)
    probed = folder / "probed.html"
    probed.write_text(files[0].read_text().replace("</body>", f"{PROBE}</body>"))
    return probed


@pytest.mark.parametrize("width", [1280, 500])
def test_nothing_sticks_out(browser, page, width):
    done = browser(f"--window-size={width},900", "--dump-dom", page.as_uri())
    inside, content, sticking, pictures = map(
        int, re.search(r'data-probe="([\d ]+)"', done.stdout)[1].split()
    )
    assert inside <= width
    assert content <= inside, "the page scrolls sideways"
    assert sticking == 0
    assert pictures >= 8


@pytest.mark.parametrize("width", [1280, 500])
def test_it_is_drawn(browser, page, tmp_path, width):
    shot = tmp_path / "shot.png"
    browser(f"--window-size={width},2000", f"--screenshot={shot}", page.as_uri())
    with Image.open(shot) as image:
        assert image.size == (width, 2000)
        colours = image.convert("RGB").getcolors(maxcolors=1 << 24)
    # Text, lines and bands in their colours: not an empty page.
    assert len(colours) > 100
    assert max(colours)[0] < 0.97 * width * 2000


def test_it_can_be_printed(browser, page, tmp_path):
    printed = tmp_path / "report.pdf"
    browser(f"--print-to-pdf={printed}", page.as_uri())
    text = printed.read_bytes()
    assert text.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", text)) >= 3


def test_no_error_is_logged(browser, page):
    done = browser("--enable-logging=stderr", "--v=0", "--dump-dom", page.as_uri())
    assert "CONSOLE" not in done.stderr, done.stderr[-2000:]
