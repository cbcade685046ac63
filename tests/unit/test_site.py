"""The site: built strictly, found by its search, and read on a phone as on a desk, by night as by day."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from plans import ROOT

from millrace.cli import COMMANDS
from millrace.errors import ExitCode

pytestmark = pytest.mark.slow
# Pages, and what they include.
FOLDERS = ("docs", "config", "profiles", "examples")
FILES = ("CHANGELOG.md", "CONTRIBUTING.md")
# What a reader looks for, and where it has to be found.
SEARCHED = {
    "global_batch": "reference/config.html",
    "keep_bits": "data/weather.html",
    "cluster place": "generated/commands.html",
    "is not an empty folder": "generated/messages.html",
    "killed": "howto/resume.html",
    "ghost node": "glossary.html",
}
PAGES = ("index", "reference/config", "data/traffic", "generated/commands", "results")
# Writes into the document what is to be seen of pages in frames, and what searches found.
PROBE = """<body><script>
const wait = ms => new Promise(done => setTimeout(done, ms));
async function open(url, width) {
  const frame = document.createElement("iframe");
  frame.width = width; frame.height = 800; frame.src = url;
  document.body.append(frame);
  await new Promise(done => frame.onload = done);
  return frame;
}
async function main() {
  const seen = { wide: [], found: {} };
  for (const page of %(pages)s) for (const width of [390, 1280]) {
    const frame = await open(page + ".html", width);
    const over = frame.contentDocument.documentElement.scrollWidth - width;
    if (over > 1) seen.wide.push([page, width, over]);
    seen.colour = frame.contentWindow.getComputedStyle(frame.contentDocument.body).backgroundColor;
    frame.remove();
  }
  for (const words of %(words)s) {
    const frame = await open("search.html?q=" + encodeURIComponent(words), 1280);
    for (let i = 0; i < 100 && !frame.contentDocument.querySelector(".search-summary, #search-results p")
        ?.textContent.match(/found|match/); i++) await wait(50);
    await wait(500);
    const links = frame.contentDocument.querySelectorAll("ul.search li a");
    seen.found[words] = [...links].map(link => link.getAttribute("href"));
    frame.remove();
  }
  document.body.dataset.seen = JSON.stringify(seen);
}
main();
</script></body>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Built in a copy, because pages are written beside the sources."""
    place = tmp_path_factory.mktemp("checkout")
    (place / "workflow").symlink_to(ROOT / "workflow")
    left = shutil.ignore_patterns("generated", "_build", "__pycache__", "results", "runs", ".*")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, place / name, ignore=left)
    for name in FILES:
        shutil.copy(ROOT / name, place)
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet"]
    done = subprocess.run(
        [*command, "-b", "html", str(place / "docs"), str(place / "site")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "workflow")},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return place / "site"


def text_of(site, page):
    return re.sub(r"<[^>]+>", "", (site / page).read_text())


def test_what_is_made_from_the_code_is_there(site):
    commands = text_of(site, "generated/commands.html")
    assert all(f"millrace {name}" in commands for name in COMMANDS)
    codes = text_of(site, "generated/exit-codes.html")
    assert all(f"{int(code)}" in codes and code.meaning in codes for code in ExitCode)
    assert (site / "generated/messages.html").read_text().count("<li><p>") > 500
    assert "array_kind" in text_of(site, "generated/python.html")


def test_nothing_but_formulas_comes_from_elsewhere(site):
    """So that pages and search work from a folder, without a network."""
    for path in site.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', path.read_text()
        )
        assert [one for one in loaded if "mathjax" not in one] == [], path


def test_newcomers_find_their_answers_within_two_clicks(site):
    """The front page links to the questions, and each question to the page that answers it."""
    links = re.findall(r'href="([^"#:]+\.html)', (site / "index.html").read_text())
    assert "questions.html" in links
    article = (site / "questions.html").read_text().partition('role="main"')[2]
    paragraphs = re.findall(r"<p><strong>(.*?)</strong>(.*?)</p>", article, flags=re.S)
    assert len(paragraphs) >= 10
    for question, answer in paragraphs:
        assert re.search(r'href="[^"]+\.html', answer), question


@pytest.fixture(scope="module")
def look(browser, site):
    """(pages, words, options of the browser) -> what is to be seen of them."""

    def ask(pages, words, *options):
        probe = site / "probe.html"
        probe.write_text(PROBE % {"pages": json.dumps(pages), "words": json.dumps(words)})
        done = browser(
            *("--allow-file-access-from-files", "--virtual-time-budget=60000", *options),
            *("--window-size=1400,900", "--dump-dom", probe.as_uri()),
        )
        found = re.search(r'data-seen="([^"]*)"', done.stdout)
        assert found, done.stderr[-2000:]
        return json.loads(found[1].replace("&quot;", '"'))

    return ask


def brightness(colour):
    return sum(map(int, re.findall(r"\d+", colour)[:3]))


def test_pages_fit_a_phone_and_a_desk_and_one_box_finds_all(look):
    seen = look(PAGES, [*SEARCHED])
    assert seen["wide"] == []
    assert brightness(seen["colour"]) > 600
    for words, page in SEARCHED.items():
        hits = [link.partition("#")[0].partition("?")[0] for link in seen["found"][words]]
        assert page in hits[:8], f"{words}: {hits[:8]}"


def test_pages_are_dark_where_the_system_is(look):
    seen = look(PAGES[:1], [], "--blink-settings=preferredColorScheme=0")
    assert seen["wide"] == []
    assert brightness(seen["colour"]) < 200
