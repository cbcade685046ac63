"""New project folders: what is written, for which raw files, and what is refused."""

import os
import subprocess
from pathlib import Path

import netCDF4
import pytest
import yaml
from plans import ROOT

from millrace.cli import main
from millrace.errors import ExitCode
from millrace.plan import Plan
from millrace.systems.groundwater.simulator.aquifer import AquiferConfig, write_aquifer
from millrace.systems.registry import formats

CONFIG = Path("mine/config/config.yaml")
PLUGIN = """
from millrace.systems.base import Model, RawFormat, SampleKind, System, Table

KIND = SampleKind(
    "drops",
    ("rain",),
    "rain:Drops",
    "rain:Scores",
    Table({}, "", "", list),
    "",
    example={"dataset": {"source": "demo", "format": "rain", "demo": {"drops": 3}}, "data": {}},
)
SYSTEM = System(
    "rainfall",
    formats=(RawFormat("rain", "rain.csv", "rain.h5", simulate="rain:simulate", files=("rain.csv",)),),
    kinds=(KIND,),
    models=(Model("drizzle", "drops", "rain:SPEC", example={"hidden": 3}),),
)
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Files of an aquifer in the layout of FEFLOW."""
    folder = tmp_path_factory.mktemp("raw") / "site"
    small = AquiferConfig(slices=8, nodes_per_slice=90, steps=60, spin_up=1.0)
    write_aquifer(small, folder, lambda *_: None)
    return folder


def made(*arguments):
    assert main(["init", "mine", *map(str, arguments)]) == ExitCode.OK
    return yaml.safe_load(CONFIG.read_text())


@pytest.mark.parametrize("system", ["groundwater", "downscaling", "weather", "traffic"])
def test_every_system_begins_with_a_configuration_that_can_be_planned(system):
    config = made("--system", system)
    assert Plan(config).final_checkpoints()
    (dataset,) = config["datasets"].values()
    assert dataset["source"] == "demo"


@pytest.mark.parametrize("name", sorted(formats().keys() - {"feflow_csv"}))
def test_every_format_can_be_given(name, here):
    (here / "raw").mkdir()
    config = made("--format", name, "--source", "raw")
    assert Plan(config).final_checkpoints()
    (dataset,) = config["datasets"].values()
    assert (dataset["format"], dataset["source"]) == (name, str(here / "raw"))


def test_columns_and_patches_are_found_in_csv_files(site):
    config = made("--source", site)
    (dataset,) = config["datasets"].values()
    assert dataset["source"] == str(site)
    assert dataset["variables"] == ["head", "mass_concentration"]
    found = {"mass_concentration_bc", "head_bc", "recharge_forcing", "sea_level_forcing"}
    assert set(dataset["forcings"]) == found
    assert dataset["patches"] == {"slice_groups": 2, "clusters": 1}
    assert "Also there: pressure" in CONFIG.read_text()
    assert Plan(config).final_checkpoints()


def test_a_column_without_a_known_unit_is_marked(here):
    (here / "raw/all").mkdir(parents=True)
    header = "node,time (d),X,Y,Z,slice,temperature,remark"
    (here / "raw/all/7.csv").write_text(f"{header}\n1,0,0,0,0,1,12.5,cold\n2,0,1,0,0,1,13.5,warm\n")
    (dataset,) = made("--source", "raw")["datasets"].values()
    assert (dataset["variables"], dataset["forcings"]) == (["temperature"], [])
    assert dataset["units"] == {"temperature": "unknown"}
    assert "# <-- their units" in CONFIG.read_text()
    assert "remark" not in CONFIG.read_text()


def test_fields_and_levels_are_found_in_files_of_icon(here):
    (here / "raw").mkdir()
    with netCDF4.Dataset(here / "raw/grid.nc", "w") as file:
        file.createDimension("cell", 4)
        file.createVariable("parent_cell_index", "i4", ("cell",))
    with netCDF4.Dataset(here / "raw/output.nc", "w") as file:
        for name, size in (("time", 2), ("height", 1), ("level", 3), ("ncells", 4)):
            file.createDimension(name, size)
        file.createVariable("time", "f8", ("time",))
        file.createVariable("pr", "f4", ("time", "ncells"))
        file.createVariable("tas", "f4", ("time", "height", "ncells"))
        file.createVariable("ta", "f4", ("time", "level", "ncells"))
    config = made("--system", "downscaling", "--source", "raw")
    (dataset,) = config["datasets"].values()
    assert (dataset["variables"], dataset["blocks"]) == (["pr"], {"levels": 1})
    assert "There are also tas.\n" in CONFIG.read_text()
    assert Plan(config).final_checkpoints()


def test_files_of_two_formats_or_of_none_are_to_be_named(here, capsys):
    (here / "raw").mkdir()
    assert main(["init", "mine", "--source", "raw"]) == ExitCode.USER
    assert "holds no files of a known format; name one with --format: " in capsys.readouterr().err
    (here / "raw/a.nc").touch()
    assert main(["init", "mine", "--source", "raw"]) == ExitCode.USER
    said = capsys.readouterr().err
    assert "holds files of icon and of weather; name one with --format: icon, weather" in said
    assert made("--source", "raw", "--format", "weather")["datasets"]


def test_damaged_files_leave_no_project(here, capsys):
    (here / "raw/all").mkdir(parents=True)
    (here / "raw/all/1.csv").write_text("node,time (d),X,Y,Z\n1,0,0,0,0\n")
    assert main(["init", "mine", "--source", "raw"]) == ExitCode.DATA
    assert "slice" in capsys.readouterr().err
    assert {path.name for path in here.iterdir()} == {"raw"}


def test_the_folder_holds_the_profile_and_names_the_workflow(here):
    made("--profile", "katana")
    for name in ("default", "local", "katana"):
        for path in (ROOT / "profiles" / name).iterdir():
            copied = here / "mine/profiles" / name / path.name
            assert copied.read_bytes() == path.read_bytes()
            assert os.access(copied, os.X_OK) == os.access(path, os.X_OK)
    assert f'"{ROOT / "Snakefile"}"' in (here / "mine/Snakefile").read_text()
    readme = (here / "mine/README.md").read_text()
    assert len(readme.splitlines()) <= 10
    assert "snakemake -n --profile profiles/katana " in readme
    assert "MILLRACE_ACCOUNT" not in readme
    ignored = (here / "mine/.gitignore").read_text().split()
    assert {"/results/", "/runs/", "/logs/", "/benchmarks/", "/.snakemake/"} == set(ignored)
    assert {path.name for path in here.iterdir()} == {"mine"}


def test_an_account_that_a_cluster_asks_for_is_in_the_readme(here):
    made("--profile", "gilbreth")
    readme = (here / "mine/README.md").read_text()
    assert "export MILLRACE_ACCOUNT=<yours>" in readme
    assert len(readme.splitlines()) <= 10


def test_an_empty_folder_is_filled_and_a_used_one_is_left_alone(here, capsys):
    assert main(["init", "."]) == ExitCode.OK
    kept = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    assert here / "config/config.yaml" in kept
    assert main(["init", "."]) == ExitCode.USER
    assert ".: exists and is not an empty folder; name a new one" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == kept


def test_nothing_half_written_stays(here, monkeypatch, capsys):
    def no_space(*arguments, **options):
        raise OSError(28, "No space left on device")

    (here / "empty").mkdir()
    monkeypatch.setattr("shutil.copytree", no_space)
    for folder in ("mine", "empty"):
        assert main(["init", folder]) == ExitCode.NO_SPACE
        assert "cannot be written (No space left on device)" in capsys.readouterr().err
    assert [path.name for path in here.rglob("*")] == ["empty"]


def test_paths_with_special_characters_arrive(here, site):
    odd = here / "our #1: {data}, 'raw' \"x\" [é]"
    odd.symlink_to(site)
    (dataset,) = made("--source", odd)["datasets"].values()
    assert dataset["source"] == str(odd)


def test_a_plug_in_begins_with_its_examples(here):
    (here / "rain.py").write_text(PLUGIN)
    # A process of its own: the systems of this one stay as they are.
    command = ["millrace", "init", "mine", "--plugins", "rain.py"]
    subprocess.run(command, check=True, capture_output=True)
    config = yaml.safe_load(CONFIG.read_text())
    assert config["plugins"] == [str(here / "rain.py")]
    assert config["run"]["experiments"] == ["drizzle"]
    assert config["datasets"]["mine"] == {"source": "demo", "format": "rain", "demo": {"drops": 3}}
    assert config["experiments"]["drizzle"]["model"] == {"name": "drizzle", "hidden": 3}
