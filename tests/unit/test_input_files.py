"""What is a file, and how much memory is free."""

import gzip
import itertools
from pathlib import Path

import pytest

from millrace.data.csv_table import read_table
from millrace.errors import DataError
from millrace.input_files import (
    MOST_UNPACKED,
    SMALL,
    check_columns,
    check_memory,
    files_below,
    free_memory,
    open_file,
    read_file,
)
from millrace.provenance import fingerprint


@pytest.mark.parametrize(
    ("controller", "names"),
    [
        ("", ("max", "current", "inactive_file 600\nactive_file 300\nslab_reclaimable 100")),
        (
            "memory",
            (
                "limit_in_bytes",
                "usage_in_bytes",
                "total_inactive_file 700\ntotal_active_file 300\ninactive_file 9",
            ),
        ),
    ],
)
def test_the_tightest_control_group_above_a_process_says_what_is_free(tmp_path, controller, names):
    groups = tmp_path / "sys/fs/cgroup" / controller
    for name, limit, used in (("job", 500_000, 300_000), ("job/step", 400_000, 50_000)):
        (groups / name).mkdir(parents=True)
        for key, value in zip(names[:2], (limit, used), strict=True):
            (groups / name / f"memory.{key}").write_text(f"{value}\n")
        (groups / name / "memory.stat").write_text(f"anon 7\n{names[2]}\n")
    (tmp_path / "proc/self").mkdir(parents=True)
    path = tmp_path / "proc/self/cgroup"
    path.write_text(f"3:cpu,cpuacct:/job/step\n0:{controller}:/job/step\n")
    assert free_memory(tmp_path) == 201_000
    (groups / f"job/memory.{names[0]}").write_text("max\n")  # no limit
    assert free_memory(tmp_path) == 351_000


def test_what_needs_more_memory_than_there_is_is_refused(tmp_path):
    check_memory(tmp_path / "x", SMALL)
    with pytest.raises(
        DataError, match=r"x: its content would take 1e\+03 PB of memory, and .* are free"
    ):
        check_memory(tmp_path / "x", 1e18)


def test_files_of_a_name_are_found_once_in_all_folders_and_where_links_lead(tmp_path):
    raw = tmp_path / "raw"
    for name in ("raw/b/c/2.nc", "raw/1.nc", "raw/b/other.csv", "raw/lost+found/3.nc", "far/4.nc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    before = fingerprint(raw)
    (raw / "b/up").symlink_to(raw)
    assert fingerprint(raw) == before
    (raw / "link.nc").symlink_to(raw / "1.nc")
    (raw / "year").symlink_to(tmp_path / "far")
    found = [path.relative_to(raw) for path in files_below(raw, "*.nc")]
    assert found == [Path("1.nc"), Path("b/c/2.nc"), Path("link.nc"), Path("year/4.nc")]
    assert fingerprint(raw) != before
    assert files_below(tmp_path / "nowhere", "*") == []


def test_packed_files_are_read_piece_by_piece(tmp_path):
    lines = [f"{n},{n * n}\n".encode() for n in range(100_000)]
    path = tmp_path / "x.csv.gz"
    path.write_bytes(
        gzip.compress(b"".join(lines[:50_000])) + gzip.compress(b"".join(lines[50_000:]))
    )
    with open_file(path) as file:
        assert list(itertools.islice(file, 3)) == lines[:3]
        assert [*file] == lines[3:]
    assert read_file(path) == b"".join(lines)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match="the gzip data ends or is damaged"):
        read_file(path)


def test_lines_may_end_as_on_old_machines(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b"a,b\r" + b"1,2\r" * 20_000)
    check_columns(path)
    assert len(read_table(path, ["a", "b"])) == 20_000


def test_rows_that_pack_well_are_read(tmp_path):
    """Fields of one value pack best of all that is no fault."""
    content = b"".join(b"%d,0.0,0.0,0.0,0.0,0.0,0.0\n" % n for n in range(100_000))
    path = tmp_path / "x.csv.gz"
    path.write_bytes(gzip.compress(content))
    assert len(content) < MOST_UNPACKED * path.stat().st_size / 3
    assert read_file(path) == content
