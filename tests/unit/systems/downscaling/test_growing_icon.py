"""Raw files of ICON that are added, changed or removed: their parts are made."""

import shutil

import netCDF4
import plans
from growing import Case, assert_only_new_parts_are_made, begun

from millrace.systems.downscaling import blocks
from millrace.systems.downscaling.settings import BlockConfig
from millrace.systems.downscaling.simulator.climate import ClimateConfig, write_climate


class Icon(Case):
    """Files of later times are added; groups of times whose sums are kept end in none of them."""

    kind = "blocks"
    settings = BlockConfig(levels=2)

    def config(self):
        return plans.icon()

    def dataset(self):
        return {
            "format": "icon",
            "variables": ["tas"],
            "split": self.split,
            "blocks": {"levels": 2},
        }

    def begin(self):
        write_climate(ClimateConfig(level=2, steps=63, steps_per_file=9), self.folder / "pool")
        shutil.copytree(self.folder / "pool", self.raw)
        for number in (5, 6):
            (self.raw / f"output/tas_{number:04d}.nc").unlink()

    def grow(self):
        for number in (5, 6):
            shutil.copy(self.folder / f"pool/output/tas_{number:04d}.nc", self.raw / "output")

    def change(self):
        with netCDF4.Dataset(self.raw / "output/tas_0001.nc", "r+") as file:
            file["tas"][3] += 1
            file.comment = "mended"

    def remove(self):
        (self.raw / "output/tas_0006.nc").unlink()

    def passes(self):
        def make(path, share):
            blocks.extract_part(self.raw, path, self.settings, share)

        return [("blocks", make)]

    def gather(self, files):
        blocks.gather(files, self.raw, self.data / "blocks.h5", self.settings, self.divided)

    def whole(self, folder):
        blocks.extract_blocks(self.raw, folder / "blocks.h5", self.settings, self.divided)


def test_only_parts_of_new_changed_and_removed_files_are_made(tmp_path):
    assert_only_new_parts_are_made(begun(Icon, tmp_path))
