"""Raw files elsewhere: planned without a network, read by the jobs."""

from project import FOLDER, Project

from millrace.input_files import resolve_address

ADDRESS = "http://127.0.0.1:9/era5.zarr"
"""Where nobody listens."""


def test_an_address_is_planned_without_a_network(tmp_path):
    project = Project(tmp_path / FOLDER)
    project.config["datasets"] = {
        "era5": {
            "source": ADDRESS,
            "format": "weather",
            "split": {"train": 0.6, "validation": 0.2, "gap": 3},
            "parts": 3,
            "store": "reference",
        }
    }
    project.config["experiments"] = {
        "tiny": {
            "dataset": "era5",
            "data": {},
            "model": {"name": "aurora"},
            "train": {"epochs": 1, "global_batch": 4},
        }
    }
    assert project.planned("data") == {"extract_part": 3, "gather_samples": 1}
    [file] = project.path(".snakemake/millrace/paths").rglob("*.address")
    assert str(resolve_address(file)) == ADDRESS
