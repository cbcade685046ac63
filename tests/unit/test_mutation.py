"""The seeded faults of `make test-mutation` still fit the library, all of it."""

import runpy

import pytest
from plans import ROOT

MUTATION = runpy.run_path(str(ROOT / "tests/mutation/run.py"))
FAULTS = MUTATION["faults"]()
SYSTEMS = {"groundwater", "downscaling", "weather", "traffic"}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_changes_one_line_and_leaves_code(fault):
    before = (ROOT / MUTATION["LIBRARY"] / fault.file).read_text().splitlines()
    text = fault.text(ROOT)
    compile(text, fault.file, "exec")
    changed = [pair for pair in zip(before, text.splitlines(), strict=True) if len({*pair}) > 1]
    assert len(changed) == 1


def test_all_packages_and_systems_have_faults():
    files = [fault.file.split("/") for fault in FAULTS]
    assert {parts[1] for parts in files if parts[0] == "systems"} == SYSTEMS
    library = ROOT / MUTATION["LIBRARY"]
    packages = {path.parent.name for path in library.glob("*/__init__.py")}
    assert packages == {parts[0] for parts in files if len(parts) > 1}
    assert len(FAULTS) >= 30
