"""The image that jobs run in: which are refused, and what is shown inside."""

import itertools
import shlex
from pathlib import Path

import pytest
from images import Image
from plans import ROOT

from millrace.errors import ConfigError
from millrace.launch.container import image_of, shown


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory."""
    made = tmp_path / "work"
    made.mkdir()
    monkeypatch.chdir(made)
    return made


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (None, "no image is named; make one (`apptainer build millrace.sif envs/millrace.def`)"),
        ("docker://lab/millrace", "`apptainer build millrace.sif docker://lab/millrace`"),
        ("it's mine.sif", "expected the path of a file, of letters, digits and"),
        ("other.sif", "no file other.sif; make one"),
    ],
)
def test_what_is_no_image_is_refused_with_what_to_do(place, named, expected):
    with pytest.raises(ConfigError) as refused:
        image_of({"container": named})
    assert expected in str(refused.value)
    Image(place / "millrace.sif")
    assert image_of({"container": "millrace.sif"}) == "millrace.sif"


@pytest.mark.parametrize("option", ["--cleanenv", "-C", "--pid", "'"])
def test_options_that_hide_a_job_from_its_ranks_are_refused(place, option):
    with pytest.raises(ConfigError, match="apptainer-args"):
        shown(f"--nv {option}", [])


def test_jobs_see_what_lies_elsewhere_each_folder_once(place, tmp_path, monkeypatch):
    raw, scratch, plugins = (tmp_path / name for name in ("raw (é) it's", "scratch", "plugins"))
    for folder in (raw / "below", scratch, plugins, place / "own"):
        folder.mkdir(parents=True)
    (place / "results").symlink_to(scratch)
    year, archive = place / "own" / "2020", tmp_path / "archive"
    year.mkdir()
    archive.mkdir()
    for name in ("a.nc", "b.nc"):
        (archive / name).touch()
        (year / name).symlink_to(archive / name)
    monkeypatch.syspath_prepend(plugins)
    options = shown("--nv", [raw / "below", raw, place / "own", tmp_path / "none"])
    words = shlex.split(options)
    bound = [word for before, word in itertools.pairwise(words) if before == "--bind"]
    assert words[:3] == ["--home", str(place / ".snakemake/millrace/home"), "--nv"]
    assert Path(words[1]).is_dir()
    assert bound.pop(0) == str(place)
    assert {str(raw), str(scratch), str(plugins), str(archive)} <= {*bound}
    assert any(ROOT.joinpath("workflow").is_relative_to(one) for one in bound[:-1]), "the library"
    assert len(bound) == len({*bound}), "a folder twice"
    assert not [
        one for one in bound if "below" in one or "none" in one or one.startswith(str(place))
    ]
    # Each node has one of its own: its shell says which.
    assert options.endswith('--bind "${TMPDIR:-/tmp}"')


def test_a_folder_that_apptainer_cannot_show_is_refused(place, tmp_path):
    odd = tmp_path / "a:b"
    odd.mkdir()
    with pytest.raises(ConfigError, match="cannot show a path with ':' or ','"):
        shown("", [Path(odd)])
