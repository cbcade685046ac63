"""Raw files, weights and configurations that are meant to hang, fill memory, or be run: see `CASES`.

Each case changes files of a small project, whose raw files were good; ``canary`` is what comes into being
if something is run that must not be.
"""

import contextlib
import gzip
import itertools
import json
import os
import pickle
import shutil
import socket
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import h5py
import motion_scenes
import netCDF4
import numpy as np
import pandas as pd
import torch
from plans import small
from travelling_waves import waves

from millrace.systems.downscaling.simulator.climate import ClimateConfig, write_climate
from millrace.systems.traffic.formats.waymo import masked_crc

HUGE = 10**12
SHELL = "$(touch canary);`touch canary`"
ODD_NAMES = ("-rf", "{x}", "a b", "it's", 'q"q', "line\nbreak", "é", "$HOME", SHELL)


class Case(NamedTuple):
    """What is done to the files of a reader, and what it has to say."""

    reader: str
    told: str | None
    """Pattern of the sentence; None: the files are read, and rightly so."""
    change: Callable[[Path, Path], object]
    """(directory of the raw files, canary)"""


CASES: dict[str, Case] = {}


def case(reader: str, told: str | None = None):
    def add(change):
        CASES[f"{reader}-{change.__name__}"] = Case(reader, told, change)
        return change

    return add


# Good files


def feflow(raw, steps=8):
    x, y = (one.ravel() for one in np.meshgrid(np.arange(4) * 30.0, np.arange(3) * 40.0))
    (raw / "all").mkdir()
    for step in range(steps):
        head = 0.4 + 0.01 * x + 0.2 * np.sin(step)
        table = {"node": np.arange(1, 13), "ts": step, "time (d)": 0.5 * step, "X": x, "Y": y}
        table |= {"Z": -1.0 - y / 100, "slice": 1 + np.arange(12) // 6}
        table |= {"mass_concentration": 300 * (101 - x / 2) + 9 * step, "head": head}
        pd.DataFrame(table).to_csv(raw / f"all/{step:04d}.csv", index=False)


def icon(raw):
    config = ClimateConfig(level=2, steps=4, steps_per_file=2, absolute_time=False)
    write_climate(config, raw / "run")


def weather(raw):
    waves(8).to_netcdf(raw / "weather.nc")


def highd(raw):
    motion_scenes.write_highd(raw)


def ngsim(raw):
    step = np.arange(120)
    table = {"Vehicle_ID": 7, "Global_Time": 1118846980200 + 100 * step, "Local_X": 18.0}
    table |= {"Local_Y": 100 + 4.0 * step, "v_Length": 15.0, "v_Width": 6.0, "v_Class": 2}
    pd.DataFrame(table | {"Lane_ID": 2}).to_csv(raw / "us101.csv", index=False)


def interaction(raw):
    nodes = [(0, 0), (0, 4e-4), (3e-5, 4e-4), (3e-5, 0)]
    lines = [
        f'<node id="{n}" lat="{lat}" lon="{lon}"/>' for n, (lat, lon) in enumerate(nodes, start=1)
    ]
    lines += ['<way id="10"><nd ref="1"/><nd ref="2"/><tag k="type" v="curbstone"/></way>']
    lines += ['<way id="11"><nd ref="4"/><nd ref="3"/><tag k="type" v="line_thin"/></way>']
    lines += ['<relation id="20"><member ref="11" role="left"/><member ref="10" role="right"/>']
    (raw / "place.osm").write_text("\n".join(["<osm>", *lines, "</relation></osm>"]))
    ms = 100 * np.arange(1, 101)
    cars = {"track_id": 1, "timestamp_ms": ms, "agent_type": "car", "x": 1 + 0.005 * ms, "y": 2.0}
    cars |= {"vx": 5.0, "vy": 0.0, "psi_rad": 0.0, "length": 4.2, "width": 1.8}
    pd.DataFrame(cars).to_csv(raw / "vehicle_tracks_000.csv", index=False)


def sumo(raw):
    edges = [
        f'<edge id="{name}" from="{name}" to="C"><lane id="{name}_0" shape="{x},{y} 0,0"/></edge>'
        f'<junction id="{name}" type="dead_end" x="{x}" y="{y}"/>'
        for name, x, y in (("east", 90, 0), ("north", 0, 90), ("west", -90, 0))
    ]
    centre = '<junction id="C" type="priority" x="0" y="0"/>'
    (raw / "cross.net.xml").write_text(f"<net>{''.join(edges)}{centre}</net>")
    rows = [
        f'<timestep time="{n / 10}"><vehicle id="a" x="{80 - n}" y="0" angle="270" type="DEFAULT_VEHTYPE" '
        'speed="10"/></timestep>'
        for n in range(100)
    ]
    (raw / "cross.fcd.xml").write_text(f"<fcd-export>{''.join(rows)}</fcd-export>")


def waymo(raw):
    record = motion_scenes.record(motion_scenes.waymo())
    (raw / "motion.tfrecord-00000-of-00001").write_bytes(record)


def argoverse2(raw):
    (raw / "log_map_archive_a.json").write_text("{}")
    (raw / "scenario_a.parquet").write_bytes(b"PAR1")


def plane_folders(raw):
    s, z = np.meshgrid(np.linspace(0, 90, 4), np.linspace(-20, 0, 3), indexing="ij")
    labels = np.stack([s, z, 1000 + 0.6 * s, 500 - 0.8 * s], axis=2)
    steps = np.arange(8)[:, None, None, None]
    full = np.concatenate(
        [
            np.broadcast_to(0.5 * steps, (8, *s.shape, 1)),
            np.broadcast_to(labels, (8, *labels.shape)),
            np.broadcast_to(s[..., None] / 100 + 0.01 * np.sin(steps), (8, *s.shape, 1)),
            np.broadcast_to(300 * (101 - s[..., None]) + 10.0 * steps, (8, *s.shape, 1)),
        ],
        axis=3,
    )
    point = np.concatenate([full[:, :1, 0, :3], full[:, :1, 0, -2:]], axis=2)
    parts = {
        "input_geom": point[..., :3], "input_data": point[..., 3:], "latent_geom": full[..., :3],
        "latent_features": full, "output_latent_geom": full[..., :3], "output_latent_features": full,
    }  # fmt: skip
    (raw / "plane_00").mkdir()
    for name, values in parts.items():
        after = 2 if name.startswith("output") else 0
        cut = np.stack([values[i + after : i + after + 2] for i in range(0, 5, 2)])
        cut = cut.reshape(len(cut), -1, cut.shape[-1]) if name.startswith("input") else cut
        np.save(raw / f"plane_00/{name}.npy", cut)


def init_from(raw):
    torch.save({"model": {"weight": torch.zeros(3, 4)}}, raw / "weights.ckpt")


def configuration(raw):
    (raw / "config.yaml").write_text(json.dumps(small("gino"), indent=1))


GOOD = {
    "feflow_csv": feflow, "plane_folders": plane_folders, "icon": icon, "weather": weather,
    "tracks": lambda raw: motion_scenes.write(raw, 4), "highd": highd, "ngsim": ngsim, "sumo": sumo,
    "interaction": interaction, "waymo": waymo, "argoverse2": argoverse2, "init_from": init_from,
    "configuration": configuration, "init": feflow,
}  # fmt: skip

# A file of each reader, which takes the place of one that hangs, leads nowhere or has no end.
ONE_OF: dict[str, str] = {
    "feflow_csv": "all/0003.csv", "plane_folders": "plane_00/latent_geom.npy",
    "icon": "run/more.nc", "weather": "more.nc", "tracks": "map/place0.csv",
    "highd": "01_tracksMeta.csv", "ngsim": "us101.csv", "sumo": "cross.net.xml",
    "interaction": "place.osm", "waymo": "motion.tfrecord-00000-of-00001",
    "argoverse2": "log_map_archive_a.json", "init_from": "weights.ckpt", "configuration": "config.yaml",
}  # fmt: skip


def put(path, make):
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    make(path)


def bind(path):
    with socket.socket(socket.AF_UNIX) as one, contextlib.chdir(path.parent):
        one.bind(path.name)


PIPE = ("pipe", "a pipe; expected a file", os.mkfifo)
KINDS = (
    ("device", "a device; expected a file", lambda path: path.symlink_to("/dev/zero")),
    ("circle", "which leads back to itself", lambda path: path.symlink_to(path.name)),
    ("nowhere", "which is not there", lambda path: path.symlink_to("/nowhere/at/all")),
    ("socket", "a socket; expected a file", bind),
    ("directory", "expected", Path.mkdir),
)
# Each reader meets a pipe and one of the others, in turn.
for number, (one, name) in enumerate(ONE_OF.items()):
    for kind, says, make in (PIPE, KINDS[number % len(KINDS)]):
        CASES[f"{one}-{kind}"] = Case(
            one, says, lambda raw, _, name=name, make=make: put(raw / name, make)
        )


@case("icon")
def folder_in_a_circle(raw, _):
    (raw / "run/loop").symlink_to(raw)


@case("icon")
def odd_names(raw, _):
    for path, new in zip(sorted(raw.rglob("*.nc")), itertools.cycle(ODD_NAMES), strict=False):
        path.rename(path.with_name(f"{new}{path.name}"))


@case("feflow_csv")
def link_out_of_the_folder(raw, _):
    elsewhere = raw.parent.parent / "elsewhere.csv"
    (raw / "all/0003.csv").rename(elsewhere)
    (raw / "all/0003.csv").symlink_to(elsewhere)


# What unpacks to gigabytes, or has no end


def bomb(path, piece):
    """3 MB that unpack to 3 GB: members of 16 MB each."""
    member = gzip.compress(piece * ((16 << 20) // len(piece)), 9)
    path.write_bytes(member * 190)


def sparse(path, size=HUGE):
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(size)


@case("feflow_csv", r"0003\.csv\.gz: 3\.\d+ MB that unpack to more than")
def packed_rows(raw, _):
    (raw / "all/0003.csv").unlink()
    bomb(raw / "all/0003.csv.gz", b"1,1\n")


@case("feflow_csv", r"0000\.csv\.gz: 3\.\d+ MB that unpack to more than")
def packed_line(raw, _):
    (raw / "all/0000.csv").unlink()
    bomb(raw / "all/0000.csv.gz", b"1")


@case("sumo", r"cross\.fcd\.xml\.gz: .*(unpack to|an element of) more than")
def packed_xml(raw, _):
    (raw / "cross.fcd.xml").unlink()
    start = gzip.compress(b"<fcd-export>")
    bomb(raw / "cross.fcd.xml.gz", b"<timestep time='1'/>")
    path = raw / "cross.fcd.xml.gz"
    path.write_bytes(start + path.read_bytes())


for one in ("feflow_csv", "highd", "tracks"):
    CASES[f"{one}-sparse"] = Case(
        one,
        "would take [14] TB|a line of more",
        lambda raw, _, name=ONE_OF[one]: sparse(raw / name),
    )


@case("weather", r"more\.csv: a line of more than|more\.csv: .* would take")
def sparse_table(raw, _):
    sparse(raw / "more.csv")


@case("icon", r"grid\.csv: .* would take|a line of more than")
def sparse_grid(raw, _):
    sparse(raw / "grid.csv")


def many_columns(path):
    names = ",".join(f"a{n}" for n in range(120_000))
    path.write_text(f"{names}\n{'1,' * 119_999}1\n")


def long_line(path):
    path.write_text("node\n" + "1" * 2_000_000 + "\n")


for one, name in (
    ("feflow_csv", "all/0000.csv"), ("icon", "grid.csv"), ("weather", "more.csv"),
    ("highd", "01_tracks.csv"), ("tracks", "tracks/place0.csv"),
):  # fmt: skip
    CASES[f"{one}-many_columns"] = Case(
        one, "120,000 columns; expected", lambda raw, _, name=name: many_columns(raw / name)
    )
    CASES[f"{one}-long_line"] = Case(
        one, "a line of more than|column", lambda raw, _, name=name: long_line(raw / name)
    )


@case("weather", r"more\.nc: not readable as nc; it is a ZIP archive")
def archive(raw, _):
    with zipfile.ZipFile(raw / "more.nc", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("../../../escaped.nc", bytes(10_000_000))


# What declares more than it holds, or that values are elsewhere


@case("plane_folders", "not a whole .npy file")
def absurd_shape(raw, _):
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({HUGE}, 2, 4, 3, 3)}}\n".encode()
    path = raw / "plane_00/latent_geom.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)


@case("plane_folders", "not a whole .npy file")
def code_as_header(raw, canary):
    header = f"__import__('os').system('touch {canary}')\n".encode()
    path = raw / "plane_00/latent_geom.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)


@case("plane_folders", "an archive of arrays")
def archive_of_arrays(raw, _):
    with (raw / "plane_00/latent_geom.npy").open("wb") as file:
        np.savez(file, a=np.zeros(3))


@case("plane_folders", "not a whole .npy file")
def pickled_objects(raw, canary):
    values = np.array([Runs(canary)], dtype=object)
    np.save(raw / "plane_00/latent_geom.npy", values, allow_pickle=True)


@case("plane_folders", "not a whole .npy file")
def pickle_itself(raw, canary):
    (raw / "plane_00/latent_geom.npy").write_bytes(pickle.dumps(Runs(canary)))


class Runs:
    """Makes a file when it is unpickled."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch '{self.canary}'",)


def classic(path, cells):
    with netCDF4.Dataset(path, "w", format="NETCDF3_64BIT_DATA") as file:
        file.createDimension("ncells", 4)
        file.createVariable("tas", "f4", ("ncells",))[:] = 1
    # The length of the only dimension, after its name.
    content = path.read_bytes()
    at = content.index(b"ncells") + 8
    path.write_bytes(content[:at] + struct.pack(">Q", cells) + content[at + 8 :])


@case("icon", r"more\.nc: cut off, \d+ bytes are missing")
def classic_axis(raw, _):
    classic(raw / "run/more.nc", HUGE)


@case("weather", r"more\.nc: cut off, \d+ bytes are missing")
def classic_field(raw, _):
    classic(raw / "more.nc", 2**62)


@case("icon", r"more\.nc: its header is damaged")
def classic_header(raw, _):
    lists = struct.pack(">II", 10, 2**31 - 1) + bytes(60_000_000)
    (raw / "run/more.nc").write_bytes(b"CDF\x01" + bytes(4) + lists)


def declared(path, name, shape, chunks):
    with h5py.File(path, "a") as file:
        for key in [key for key in (name,) if key in file]:
            del file[key]
        made = file.create_dataset(name, shape, "f8", chunks=chunks, compression="gzip")
        if len(shape) == 1:
            made.make_scale(name)


@case("icon", r"more\.nc: 'time' is declared as 1000000000000 values")
def axis_without_values(raw, _):
    declared(raw / "run/more.nc", "time", (HUGE,), (1000,))


@case("weather", r"more\.nc: 'latitude' is declared as 1000000000000 values")
def latitudes_without_values(raw, _):
    declared(raw / "more.nc", "latitude", (HUGE,), (1000,))


@case("weather", r"more\.nc: a chunk \[250000000, 2\] of '2m_temperature' would take 4 GB")
def chunk_of_gigabytes(raw, _):
    shutil.copy(raw / "weather.nc", raw / "more.nc")
    declared(raw / "more.nc", "2m_temperature", (500_000_000, 2), (250_000_000, 2))


@case("icon", r"more\.nc: the values of 'tas' lie in another file, /etc/passwd")
def values_of_another_file(raw, _):
    with h5py.File(raw / "run/more.nc", "w") as file:
        file.create_dataset("tas", (4, 8), "i1", external=[("/etc/passwd", 0, 32)])


@case("icon", r"more\.nc: the values of 'tas' lie in another file, /etc/passwd")
def virtual_values(raw, _):
    layout = h5py.VirtualLayout((4, 320), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "tas", (4, 320))
    with h5py.File(raw / "run/more.nc", "w") as file:
        file.create_virtual_dataset("tas", layout)
        file["tas"].dims[1].label = "ncells"


@case("icon", r"more\.nc: a group has two names")
def groups_in_circles(raw, _):
    with h5py.File(raw / "run/more.nc", "w") as file:
        file.create_group("a/b")
        file["a/b/again"] = file["a"]


@case("icon", r"more\.nc: 'again' is a link to /a")
def links_in_circles(raw, _):
    with h5py.File(raw / "run/more.nc", "w") as file:
        file.create_group("a")
        file["a/again"] = h5py.SoftLink("/a")


@case("weather", r"more\.nc: 'tas' is a link to /etc/passwd")
def link_to_another_file(raw, _):
    with h5py.File(raw / "more.nc", "w") as file:
        file["tas"] = h5py.ExternalLink("/etc/passwd", "/tas")


@case("icon", r"more\.nc: a group has two names, or is more than 32 deep")
def deep_groups(raw, _):
    with h5py.File(raw / "run/more.nc", "w") as file:
        file.create_group("a/" * 5_000)


def zarr_store(path, **changes):
    """A store of version 2 beside its good NetCDF file; ``changes`` of the description of its latitudes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        good = waves(8).drop_vars("land_sea_mask")
        good.to_zarr(path, zarr_format=2, consolidated=False)
    described = path / "latitude/.zarray"
    described.write_text(json.dumps(json.loads(described.read_text()) | changes))


@case("weather", r"more\.zarr: 'latitude' of shape \[1000000000000\] would take 8 TB")
def zarr_axis(raw, _):
    zarr_store(raw / "more.zarr", shape=[HUGE])


@case("weather", r"more\.zarr: a chunk \[1000000000000\] of 'latitude' would take 8 TB")
def zarr_chunk(raw, _):
    zarr_store(raw / "more.zarr", chunks=[HUGE])


@case("weather", r"more\.zarr: .*(pickle|not readable as Zarr)")
def zarr_of_pickles(raw, canary):
    zarr_store(raw / "more.zarr", dtype="|O", filters=[{"id": "pickle"}], compressor=None)
    (raw / "more.zarr/latitude/0").write_bytes(pickle.dumps(Runs(canary)))


@case("weather", r"more\.zarr: .*")
def zarr_of_names_above(raw, _):
    zarr_store(raw / "more.zarr")
    described = {
        f"../../../{name}": json.loads((raw / f"more.zarr/latitude/{name}").read_text())
        for name in (".zarray", ".zattrs")
    }
    content = {
        "zarr_consolidated_format": 1,
        "metadata": {".zgroup": {"zarr_format": 2}} | described,
    }
    (raw / "more.zarr/.zmetadata").write_text(json.dumps(content))


@case("weather", r"more\.zarr: not readable as Zarr")
def zarr_in_depth(raw, _):
    zarr_store(raw / "more.zarr")
    (raw / "more.zarr/latitude/.zarray").write_text("[" * 100_000)


@case("weather", r"more\.zarr/latitude/0: 3\.\d+ MB, but .* hold all values that are declared")
def packed_chunk(raw, _):
    zarr_store(raw / "more.zarr", compressor={"id": "gzip", "level": 1}, filters=None)
    (raw / "more.zarr/latitude/0").unlink()
    bomb(raw / "more.zarr/latitude/0", bytes(1 << 20))


@case("weather", r"more\.nc: 3\.\d+ MB for 'latitude', but .* hold all values that are declared")
def packed_chunk_of_hdf5(raw, _):
    waves(8).to_netcdf(raw / "more.nc", encoding={"latitude": {"zlib": True}})
    pack = zlib.compressobj(9)
    start, member = (pack.compress(bytes(16 << 20)) + pack.flush(zlib.Z_FULL_FLUSH) for _ in "12")
    with h5py.File(raw / "more.nc", "a") as file:
        file["latitude"].id.write_direct_chunk((0,), start + member * 190)


@case("weather", r"more\.csv: its 20,000 rows are .* places and times together; expected a grid")
def rows_of_no_grid(raw, _):
    n = np.arange(20_000)
    table = {"time": "2001-03-01T00", "lat": n / 300, "lon": n / 100, "2m_temperature": 280.0}
    pd.DataFrame(table).to_csv(raw / "more.csv", index=False)


@case("weather", r"more\.grib: .*GRIB")
def damaged_grib(raw, _):
    (raw / "more.grib").write_bytes(b"GRIB" + bytes(range(256)) * 40)


# XML


LAUGHS = "".join(
    f'<!ENTITY l{n} "{f"&l{n - 1};" * 10 if n else "ha"}">' for n in range(10)
)  # fmt: skip


def as_entity(path, entities, name):
    text = path.read_text().replace(">", f">&{name};", 1)
    path.write_text(f"<!DOCTYPE x [{entities}]>{text}")


@case("sumo", r"cross\.net\.xml: declares the entity 'l0'")
def laughs(raw, _):
    as_entity(raw / "cross.net.xml", LAUGHS, "l9")


@case("interaction", r"place\.osm: declares the entity 'l0'")
def laughs_in_a_map(raw, _):
    as_entity(raw / "place.osm", LAUGHS, "l9")


@case("interaction", r"place\.osm: declares the entity 'secret'")
def entity_of_another_file(raw, _):
    as_entity(raw / "place.osm", '<!ENTITY secret SYSTEM "file:///etc/passwd">', "secret")


@case("sumo", r"cross\.fcd\.xml: elements more than 50 deep in each other")
def deep_elements(raw, _):
    (raw / "cross.fcd.xml").write_text("<fcd-export>" + "<a>" * 100_000)


@case("sumo", r"/etc/passwd: cannot be read as XML")
def names_above(raw, _):
    up = "../" * 30
    (raw / "cross.sumocfg").write_text(f'<c><net-file value="{up}etc/passwd"/></c>')


@case("sumo", "lane .* is not a line of some kilometres")
def endless_lane(raw, _):
    path = raw / "cross.net.xml"
    path.write_text(path.read_text().replace("90,0 0,0", "1e300,0 0,0"))


@case("sumo", "not a network of SUMO")
def lane_of_one_point(raw, _):
    path = raw / "cross.net.xml"
    path.write_text(path.read_text().replace("90,0 0,0", "0,0"))


@case("interaction", "not a Lanelet2 map")
def no_place(raw, _):
    path = raw / "place.osm"
    path.write_text(path.read_text().replace('lat="0"', 'lat="1e999"', 1))


# Numbers that decide how much is made


@case("interaction", "times reach from")
def endless_recording(raw, _):
    path = raw / "vehicle_tracks_000.csv"
    path.write_text(path.read_text().replace("10000,car", "1e300,car"))


@case("highd", "times reach from")
def endless_frames(raw, _):
    table = pd.read_csv(raw / "01_tracks.csv").astype({"frame": float})
    table.loc[len(table) - 1, "frame"] = 1e18
    table.to_csv(raw / "01_tracks.csv", index=False)


@case("highd")
def long_pause(raw, _):
    """Nine years between two observations are few scenarios, and no long work."""
    path = raw / "01_tracks.csv"
    table = pd.read_csv(path)
    later = table.assign(frame=table["frame"] + 25 * 280_000_000)
    pd.concat([table, later]).to_csv(path, index=False)


@case("ngsim", "in column 'Local_Y'; expected feet on a stretch of road")
def endless_road(raw, _):
    path = raw / "us101.csv"
    path.write_text(path.read_text().replace(",100.0,", ",1e14,", 1))


@case("tracks", r"place0\.csv: its lines are .* km long together")
def endless_lines(raw, _):
    table = pd.read_csv(raw / "map/place0.csv")
    table.loc[3, "position_x"] = 1e30
    table.to_csv(raw / "map/place0.csv", index=False)


@case("waymo", "long; expected a scenario")
def record_of_gigabytes(raw, _):
    head = struct.pack("<Q", 10**11)
    with (raw / "motion.tfrecord-00000-of-00001").open("wb") as file:
        file.write(head + struct.pack("<I", masked_crc(head)))
        file.truncate(2 * 10**11)


@case("waymo", "the file ends in it")
def record_without_end(raw, _):
    head = struct.pack("<Q", 2**64 - 1)
    path = raw / "motion.tfrecord-00000-of-00001"
    path.write_bytes(head + struct.pack("<I", masked_crc(head)) + b"abc")


@case("waymo", "states; expected|not a Scenario|would take")
def millions_of_tracks(raw, _):
    content = motion_scenes.waymo() + b"\x12\x00" * 1_000_000
    (raw / "motion.tfrecord-00000-of-00001").write_bytes(motion_scenes.record(content))


@case("argoverse2", "not a map of Argoverse 2")
def deep_map(raw, _):
    (raw / "log_map_archive_a.json").write_text('{"lane_segments":' + "[" * 1_000_000)


# Names in data


@case("waymo")
def identifiers_as_paths(raw, canary):
    names = ["../../../../escaped", "/tmp/escaped", str(canary), SHELL, "{x}", "-rf", "a'b\"c", "é"]
    records = [motion_scenes.record(motion_scenes.waymo(name)) for name in names]
    (raw / "motion.tfrecord-00000-of-00001").write_bytes(b"".join(records))


@case("waymo", "expected a name without control characters")
def identifier_of_two_lines(raw, _):
    record = motion_scenes.record(motion_scenes.waymo("a\nb"))
    (raw / "motion.tfrecord-00000-of-00001").write_bytes(record)


@case("tracks")
def odd_identifiers(raw, _):
    for path in raw.glob("*/place0.csv"):
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        for name in ("scenario_id", "polyline_id"):
            if name in table:
                table[name] = "../../" + SHELL + table[name]
        table.to_csv(path, index=False)


# Weights


@case("init_from", "damaged|not a readable checkpoint")
def pickle_as_weights(raw, canary):
    (raw / "weights.ckpt").write_bytes(pickle.dumps({"model": Runs(canary)}))


@case("init_from", "not a readable checkpoint")
def pickle_in_weights(raw, canary):
    torch.save({"model": {"weight": torch.zeros(3)}, "more": Runs(canary)}, raw / "weights.ckpt")


@case("init_from", "damaged, a checksum inside")
def packed_weights(raw, _):
    with zipfile.ZipFile(raw / "weights.ckpt") as file:
        parts = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(raw / "weights.ckpt", "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in parts.items():
            file.writestr(name, content)
        file.writestr("weights/data/1", bytes(100_000_000))


@case("init_from", "is declared as 1000000000000 values")
def view_of_terabytes(raw, _):
    state = {"model": {"weight": torch.zeros(1).expand(HUGE)}}
    torch.save(state, raw / "weights.ckpt")


@case("init_from", "holds a list")
def list_as_weights(raw, _):
    torch.save([torch.zeros(3)], raw / "weights.ckpt")


@case("init_from", "its weights are no tensors")
def text_as_weights(raw, _):
    torch.save({"model": {"weight": "text"}}, raw / "weights.ckpt")


# Configurations


def with_text(raw, text):
    (raw / "config.yaml").write_text(text)


def changed(raw, change):
    config = json.loads((raw / "config.yaml").read_text())
    change(config)
    with_text(raw, json.dumps(config))


@case("configuration", "not YAML")
def python_in_yaml(raw, canary):
    with_text(raw, f"run: !!python/object/apply:os.system ['touch {canary}']\n")


@case("configuration", "more than 200,000 values")
def yaml_laughs(raw, _):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with_text(raw, "\n".join([*lines, "run: *a11", ""]))


@case("configuration", "not YAML")
def deep_yaml(raw, _):
    with_text(raw, "run: " + "[" * 5_000)


@case("configuration", "more than 1,000,000 bytes")
def endless_yaml(raw, _):
    sparse(raw / "config.yaml")


@case("configuration", "not YAML|expected")
def huge_number(raw, _):
    with_text(raw, f"run: {'9' * 5000}\n")


@case("configuration", "not YAML: month must be")
def no_date(raw, _):
    with_text(raw, "run: 2026-13-45\n")


@case("configuration", r"epochs: expected a whole number")
def endless_training(raw, _):
    changed(raw, lambda config: config["experiments"]["tiny"]["train"].update(epochs=2**31))


def name_of(block, name):
    def change(config):
        config[block][name] = config[block].pop(next(iter(config[block])))

    return lambda raw, _: changed(raw, change)


for number, name in enumerate(("../../escaped", "/tmp/escaped", "a/b", *ODD_NAMES)):
    block = ("datasets", "experiments")[number % 2]
    told = f"config: {block}.* expected a name of letters, digits"
    CASES[f"configuration-{block}_named_{number}"] = Case(
        "configuration", told, name_of(block, name)
    )


@case("configuration")
def pipe_among_raw_files(raw, _):
    """Planning looks into the first of them."""
    feflow(raw, 60)
    put(raw / "all/0000.csv", os.mkfifo)

    def change(config):
        config["datasets"]["small"]["source"] = str(raw)
        config["datasets"]["small"].pop("demo")

    changed(raw, change)


@case("init", r"0000\.csv: a pipe; expected a file")
def pipe_as_first_file(raw, _):
    put(raw / "all/0000.csv", os.mkfifo)


@case("configuration")
def source_with_variables(raw, _):
    def change(config):
        config["datasets"]["small"]["source"] = f"raw/$HOME/{SHELL}/{{x}}"

    changed(raw, change)
