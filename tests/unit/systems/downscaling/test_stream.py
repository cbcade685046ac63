"""Fields of a running model become training data, whatever is killed when."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from comin_standin import Comin

from millrace.data.hdf5 import open_checked
from millrace.data.split import SplitConfig
from millrace.errors import DataError
from millrace.systems.downscaling.blocks import BlockConfig, extract_blocks
from millrace.systems.downscaling.icon import open_source
from millrace.systems.downscaling.icon_source import FieldScreening
from millrace.systems.downscaling.simulator.icosphere import Icosphere, write_grid
from millrace.systems.downscaling.stream import comin_plugin, command
from millrace.systems.downscaling.stream.watcher import Watcher

RANKS, GRID = 4, Icosphere.build(1)
CELLS = len(GRID.area_N)


def time(step):
    return f"2020-01-{1 + step // 4:02d}T{step % 4 * 6:02d}:00:00.000"


def field(step):
    return 280.0 + step + np.arange(CELLS) / CELLS


@pytest.fixture
def grids(tmp_path):
    folder = tmp_path / "grids"
    folder.mkdir()
    for level in (0, 1):
        write_grid(folder / f"R2B{level:02d}.nc", Icosphere.build(level))
    return folder


class Model:
    """All ranks of a run with the plug-in."""

    def __init__(self, stream, ranks=RANKS, steps=3, every=1):
        arguments = ["--directory", str(stream), "--variables", "tas", "pr"]
        arguments += ["--steps", str(steps), "--every", str(every)]
        self.ranks = [Comin(rank, ranks, GRID, arguments) for rank in range(ranks)]
        for rank in self.ranks:
            comin_plugin.register(rank)
            rank.call(Comin.EP_SECONDARY_CONSTRUCTOR)

    def run(self, steps, ranks=slice(None)):
        for step in steps:
            for rank in self.ranks[ranks]:
                rank.output(time(step), tas=field(step), pr=-field(step))

    def finish(self):
        for rank in self.ranks:
            rank.call(Comin.EP_DESTRUCTOR)


def read(output, variable="tas"):
    source = open_source(output, [variable], levels=1)
    spans = [span for group in source.fields.groups(100, 1) for span in group]
    found = source.fields.slabs(spans, FieldScreening(None))
    return np.concatenate(list(found))[..., 0], source.fields.time_T


def test_fields_arrive_whole_and_in_order(tmp_path, grids):
    model = Model(tmp_path / "stream")
    assert model.ranks[0].n_halo > 0
    model.run(range(7))
    model.finish()
    written = Watcher(tmp_path / "stream", grids, tmp_path / "raw").poll()
    assert len(written) == 3  # 3 + 3 + 1 times
    values, days = read(tmp_path / "raw")
    np.testing.assert_allclose(values, [field(step) for step in range(7)], rtol=1e-6)
    np.testing.assert_allclose(np.diff(days), 0.25)
    assert days[0] == (np.datetime64("2020-01-01") - np.datetime64("1970-01-01")).astype(int)
    np.testing.assert_allclose(read(tmp_path / "raw", "pr")[0], -values)
    assert Watcher(tmp_path / "stream", grids, tmp_path / "raw").poll() == []


def test_only_every_nth_time_is_taken(tmp_path, grids):
    model = Model(tmp_path / "stream", every=2)
    model.run(range(6))
    Watcher(tmp_path / "stream", grids, tmp_path / "raw").poll()
    np.testing.assert_allclose(read(tmp_path / "raw")[0][:, 0], [280, 282, 284], rtol=1e-6)


def test_what_a_rank_has_not_written_waits(tmp_path, grids):
    model = Model(tmp_path / "stream")
    model.run(range(6), ranks=slice(0, 3))
    watcher = Watcher(tmp_path / "stream", grids, tmp_path / "raw")
    assert watcher.poll() == []
    model.run(range(3), ranks=slice(3, 4))
    assert len(watcher.poll()) == 1
    model.run(range(3, 6), ranks=slice(3, 4))
    assert len(watcher.poll()) == 1
    assert len(read(tmp_path / "raw")[0]) == 6


def test_a_restart_from_an_earlier_time_leaves_no_gap_and_nothing_twice(tmp_path, grids):
    """Killed between the ranks' chunks, restarted with other ranks and from a time that falls into one."""
    model = Model(tmp_path / "stream")
    model.run(range(6), ranks=slice(0, 2))
    model.run(range(3), ranks=slice(2, 4))
    watcher = Watcher(tmp_path / "stream", grids, tmp_path / "raw")
    assert len(watcher.poll()) == 1
    again = Model(tmp_path / "stream")
    again.run(range(2, 11))
    again.finish()
    watcher.poll()
    values, days = read(tmp_path / "raw")
    np.testing.assert_allclose(values[:, 0], 280.0 + np.arange(11), rtol=1e-6)
    np.testing.assert_allclose(np.diff(days), 0.25)


WRITER = """
    import sys
    import numpy as np
    from pathlib import Path
    from millrace.systems.downscaling.stream.comin_plugin import ChunkWriter
    class Slow(ChunkWriter):
        def write_file(self, name, content):
            if name.startswith("chunk_20200102"):
                part = self._directory / f"{name}.tmp"
                part.write_bytes(content[: len(content) // 2])
                print("half", flush=True)
                sys.stdin.read()
            super().write_file(name, content)
    writer = Slow(Path(sys.argv[1]), np.arange(int(sys.argv[2])), ["tas"], 1)
    for day in (1, 2):
        writer.add(f"2020-01-0{day}T00:00:00", [np.full(int(sys.argv[2]), 280.0 + day)])
"""


def test_a_writer_killed_in_the_middle_of_a_chunk_leaves_nothing_half(tmp_path, grids):
    folder = tmp_path / "stream/rank_00000"
    running = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(folder), str(CELLS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert running.stdout.readline() == b"half\n"
    running.kill()
    running.communicate()
    (half,) = folder.glob("*.tmp")
    with (folder / "manifest.jsonl").open("a") as manifest:
        manifest.write('\n{"file": "chunk_2020')  # and one killed while it wrote the manifest
    watcher = Watcher(tmp_path / "stream", grids, tmp_path / "raw")
    assert len(watcher.poll()) == 1
    writer = comin_plugin.ChunkWriter(folder, np.arange(CELLS), ["tas"], 1)
    writer.add("2020-01-02T00:00:00", [np.full(CELLS, 282.0)])
    assert len(watcher.poll()) == 1
    assert not half.exists()
    np.testing.assert_allclose(read(tmp_path / "raw")[0][:, 0], [281, 282])


def test_a_damaged_chunk_is_named(tmp_path, grids):
    model = Model(tmp_path / "stream")
    model.run(range(3))
    chunk = next((tmp_path / "stream/rank_00002").glob("*.npz"))
    content = bytearray(chunk.read_bytes())
    content[-100] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(DataError, match=r"rank_00002.*is not what its manifest says"):
        Watcher(tmp_path / "stream", grids, tmp_path / "raw").poll()


def test_blocks_are_cut_from_what_was_streamed(tmp_path, grids):
    """The whole way: from the memory of the model to training data."""
    model = Model(tmp_path / "stream")
    model.run(range(24))
    model.finish()
    arguments = ["--stream", str(tmp_path / "stream"), "--grids", str(grids)]
    assert command.main([*arguments, "--output", str(tmp_path / "raw"), "--once"]) == 0
    config, split = (
        BlockConfig(variables=("tas", "pr"), levels=1),
        SplitConfig(train=0.5, validation=0.25, gap=1),
    )
    extract_blocks(tmp_path / "raw", tmp_path / "blocks.h5", config, split)
    with open_checked(tmp_path / "blocks.h5", "millrace.blocks/1") as file:
        cells = file["cell"][()] - 1
        np.testing.assert_allclose(file["fine"][5, :, 0], field(5)[cells], rtol=1e-6)


def test_the_plugin_needs_nothing_but_numpy(tmp_path):
    """ICON's Python has no Millrace: the file is run alone, with the stand-in as `comin`."""
    script = f"""
        import sys, runpy
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import comin_standin
        import numpy as np
        from types import SimpleNamespace
        neighbours = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
        grid = SimpleNamespace(area_N=np.ones(4), neighbours_N3=neighbours)
        arguments = ["--directory", {str(tmp_path)!r}, "--variables", "tas"]
        sys.modules["comin"] = model = comin_standin.Comin(0, 2, grid, arguments)
        runpy.run_path({comin_plugin.__file__!r}, run_name="__main__")
        assert not [n for n in sys.modules if n.split(".")[0] in ("torch", "millrace", "h5py")]
        model.call(model.EP_SECONDARY_CONSTRUCTOR)
        model.output("2020-01-01T00:00:00.000", tas=np.arange(4.0))
        model.call(model.EP_DESTRUCTOR)
    """
    run = [sys.executable, "-c", textwrap.dedent(script)]
    subprocess.run(run, check=True, cwd=tmp_path, env={"PATH": ""})
    (line,) = (tmp_path / "rank_00000/manifest.jsonl").read_text().split("\n\n")
    described = json.loads(line)
    with np.load(tmp_path / "rank_00000" / described["file"]) as chunk:
        assert sorted(chunk["cell"]) == [0, 1]
        np.testing.assert_array_equal(chunk["values"][0, :, 0], chunk["cell"])
