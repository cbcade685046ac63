"""docs/reference/hdf5.md tells of every dataset of every kind of samples, and of its type."""

import re
from pathlib import Path

import h5py
import pytest

PAGE = (Path(__file__).parents[3] / "docs/reference/hdf5.md").read_text()
# What stands for several names, and what is there only if the raw files have it.
SEVERAL = {"patch_<n>": r"patch_\d+", "plane_<n>": r"plane_\d+", "<level>": r"\d+"}
SEVERAL["<class>"] = "vehicle|pedestrian|cyclist"
OPTIONAL = {"geometry/elevation", "geometry/land", "node"}


@pytest.mark.parametrize(
    ("name", "fixture"),
    [
        ("patches", "samples"),
        ("planes", "plane_samples"),
        ("blocks", "block_samples"),
        ("weather", "weather_samples"),
        ("scenarios", "motion_samples"),
    ],
)
def test_every_dataset_is_described_with_its_type(name, fixture, request):
    made = request.getfixturevalue(fixture)
    (section,) = re.findall(rf"^## `{name}\.h5`\n(.*?)(?=^## |\Z)", PAGE, flags=re.M | re.S)
    told = dict(re.findall(r"^\| `([^`]+)` \| (\w+) \|", section, flags=re.M))
    assert told
    found = {}
    with h5py.File(made["patches"] if fixture == "samples" else made) as file:
        file.visititems(
            lambda path, item: (
                found.update({path: item}) if isinstance(item, h5py.Dataset) else None
            )
        )
        types = {path: str(item.dtype) for path, item in found.items()}
    patterns = {}
    for path, kind in told.items():
        pattern = re.escape(path)
        for short, several in SEVERAL.items():
            pattern = pattern.replace(re.escape(short), f"(?:{several})")
        patterns[path] = (re.compile(pattern), kind)
    for path, kind in types.items():
        fits = [said for pattern, said in patterns.values() if pattern.fullmatch(path)]
        assert fits == [kind], f"{path} is {kind}; the page says {fits or 'nothing'}"
    unused = {
        path
        for path, (pattern, _) in patterns.items()
        if not any(pattern.fullmatch(one) for one in types)
    }
    assert unused <= OPTIONAL
