"""Raw files of groundwater that are added, changed or removed: their parts are made."""

import shutil

import plans
import pytest
from growing import (
    Case,
    assert_only_new_parts_are_made,
    begun,
    run_second_pass,
)

from millrace.data.division import read_share
from millrace.systems.groundwater import missing_nodes, series_parts
from millrace.systems.groundwater.series import RawSeries, preprocess
from millrace.systems.groundwater.settings import AquiferConfig, MaskedMissing
from millrace.systems.groundwater.simulator.aquifer import write_aquifer
from millrace.systems.groundwater.units import UNITS


class Groundwater(Case):
    """Files of numbers that were left out, and of later times, are added."""

    kind = "series"
    first, later = ({*range(16)} - {3, 14}, (3, 16, 17))
    variables, missing = ("head", "mass_concentration"), None

    def config(self):
        made = plans.config()
        made["experiments"]["head"]["data"] |= {"input_steps": 1, "output_steps": 1}
        return made

    def dataset(self):
        return {"variables": [*self.variables], "forcings": ["head_bc"], "split": self.split}

    def opened(self, split):
        return RawSeries(
            self.raw,
            variables=self.variables,
            forcings=("head_bc",),
            split=split,
            missing=self.missing,
        )

    def begin(self):
        settings = AquiferConfig(slices=3, nodes_per_slice=40, steps=18, spin_up=1.0)
        write_aquifer(settings, self.folder / "pool")
        self.add(self.first)

    def add(self, numbers):
        for folder in ("all", "forcings_corrected_all"):
            (self.raw / folder).mkdir(parents=True, exist_ok=True)
            for n in numbers:
                shutil.copy(self.folder / f"pool/{folder}/{n:04d}.csv", self.raw / folder)

    def grow(self):
        self.add(self.later)

    def change(self):
        set_head(self.raw / "all/0001.csv", 2, "0.51234567890123456")

    def remove(self):
        for folder in ("all", "forcings_corrected_all"):
            (self.raw / folder / "0015.csv").unlink()

    def passes(self):
        def make(path, share):
            series_parts.preprocess_part(self.opened(None), path, share)

        return [("series", make)]

    def gather(self, files):
        series_parts.gather_series(self.opened(self.divided), files, self.data / "series.h5")

    def whole(self, folder):
        preprocess(
            self.raw,
            folder / "series.h5",
            variables=self.variables,
            forcings=("head_bc",),
            split=self.divided,
            missing=self.missing,
        )


def set_head(path, node, value):
    header, *lines = path.read_text().splitlines()
    cells = lines[node].split(",")
    cells[header.split(",").index("head")] = value
    lines[node] = ",".join(cells)
    path.write_text("\n".join([header, *lines]) + "\n")


class Masked(Groundwater):
    """The same in two passes; what is added has values wherever what was there had some."""

    missing = MaskedMissing(value=-999, then="mask")

    def dataset(self):
        return {**super().dataset(), "missing": {"value": -999, "then": "mask"}}

    def begin(self):
        super().begin()
        set_head(self.raw / "all/0006.csv", 3, "-999")

    @property
    def keys(self):
        return {"variables": self.variables, "units": UNITS, "value": -999.0}

    def passes(self):
        def find(path, share):
            missing_nodes.find_missing(self.raw, path, share=share, **self.keys)

        return [("missing", find)]

    def gather(self, files):
        plan, missing = self.plan(record=False), self.data / "missing.h5"
        missing_nodes.gather_missing(self.files(plan, "missing"), self.raw, missing, **self.keys)
        for path in files:  # all are planned, as the workflow cannot know that it is the same
            path.unlink(missing_ok=True)
            number = int(path.stem.rpartition("_")[2])
            share = read_share(*plan.data.share("set", "series", number))
            series_parts.preprocess_part(self.opened(None), path, share, missing)
        series = self.data / "series.h5"
        series_parts.gather_series(self.opened(self.divided), files, series, missing)


@pytest.mark.parametrize("kind", [Groundwater, Masked])
def test_only_parts_of_new_changed_and_removed_files_are_made(kind, tmp_path):
    assert_only_new_parts_are_made(begun(kind, tmp_path))


def test_states_of_the_same_nodes_are_kept(tmp_path, capsys):
    case = begun(Masked, tmp_path)
    case.add([16])
    made, same = run_second_pass(case, "series")
    assert made == [3]
    assert same == {f"series_{n}.h5": True for n in range(3)}
    assert "kept, missing.h5 holds what it held before" in capsys.readouterr().out
    set_head(case.folder / "pool/all/0017.csv", 7, "-999")
    case.add([17])
    _, same = run_second_pass(case, "series")
    assert not any(same.values())
    case.assert_as_a_whole()
