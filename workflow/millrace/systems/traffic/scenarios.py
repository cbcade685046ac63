"""The rules `build_vocabulary` and `tokenise`: from a directory of raw traffic to `scenarios.h5`."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from millrace.data.account import Account
from millrace.data.hdf5 import create, create_dataset, create_virtual, open_checked
from millrace.data.parts import part_of
from millrace.data.split import SPLITS
from millrace.errors import DataError
from millrace.systems.base import Progress
from millrace.systems.traffic.formats import Traffic, content
from millrace.systems.traffic.motion_sample import MotionSample
from millrace.systems.traffic.scenario_file import (
    OF_SCENARIO,
    ROWS,
    SCHEMA,
    TOGETHER,
    Writer,
    datasets_of_rows,
    write_columns,
)
from millrace.systems.traffic.settings import TokenConfig
from millrace.systems.traffic.splits import splits_of
from millrace.systems.traffic.tokens import STRIDE, Tokeniser
from millrace.systems.traffic.tracks import CURRENT_STEP
from millrace.systems.traffic.vocabulary import NAMES, ROAD, Vocabulary, k_disks

VOCABULARY_SCHEMA = "millrace.vocabulary/1"
PART_SCHEMA, SAMPLE_SCHEMA = "millrace.scenarios_part/1", "millrace.motion_sample/1"

_SEGMENTS = 200_000  # of a class, or of roads; more do not change their vocabulary


def build_vocabulary(
    source: Path,
    output: Path,
    config: TokenConfig,
    progress: Progress | None = None,
    raw: str = "tracks",
) -> Vocabulary:
    """Build the vocabularies from training scenarios of a directory of raw traffic of the format ``raw``.

    Of many scenarios some are taken, see `millrace.systems.traffic.motion_sample`. ``progress`` is called
    with (files done, all).

    Raises
    ------
    DataError
        The files are malformed or not plausible, no scenario is in the training split, or no map has a
        line.
    """
    traffic = Traffic(raw, source)
    sample, has_test = _sampled(traffic, range(len(traffic.files)), config, progress)
    return _write_vocabulary(source, output, config, sample, has_test)


def sample_motion(
    source: Path,
    output: Path,
    config: TokenConfig,
    part: int,
    parts: int,
    progress: Progress | None = None,
    raw: str = "tracks",
) -> None:
    """Write what `gather_vocabulary` needs of one of several parts of the files, counted from 0."""
    traffic = Traffic(raw, source)
    files = part_of(len(traffic.files), part, parts)
    sample, has_test = _sampled(traffic, files, config, progress)
    with create(output) as file:
        sample.write(file.create_group("sample"))
        _describe_part(file, traffic, files, config)
        file.attrs.update(schema=SAMPLE_SCHEMA, has_test=has_test)


def gather_vocabulary(
    parts: Sequence[Path], output: Path, config: TokenConfig, progress: Progress | None = None
) -> Vocabulary:
    """Build the vocabularies of what `sample_motion` wrote: those of `build_vocabulary`, bit by bit."""
    sample, has_test, whole = MotionSample(config.seed), False, _Whole()
    for number, path in enumerate(parts):
        with open_checked(path, SAMPLE_SCHEMA) as file:
            whole.add(file, path)
            sample.merge(MotionSample.read(file["sample"], config.seed))
            has_test = has_test or bool(file.attrs["has_test"])
        if progress is not None:
            progress(number + 1, len(parts))
    whole.check(output)
    return _write_vocabulary(Path(whole.facts["source"]), output, config, sample, has_test)


def _describe_part(
    file: h5py.File, traffic: Traffic, files: range, config: TokenConfig, vocabulary: str = ""
) -> None:
    """Write which files a part is of, and what all parts have in common."""
    facts = {
        "source": str(traffic.source),
        "config": config.written(),
        "files": len(traffic.files),
        "vocabulary": vocabulary,
    }
    file.attrs.update(facts=json.dumps(facts, sort_keys=True), first=files.start, count=len(files))


class _Whole:
    """Parts in their order, which have to be all of the same raw files and settings."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self._files = 0

    def add(self, part: h5py.File, path: Path) -> None:
        """Raises `DataError` if a part is another than the one that follows."""
        facts = json.loads(part.attrs["facts"])
        if self.facts not in ({}, facts):
            raise DataError(
                f"{path}: not of the same raw files and settings as the parts before; delete it and make "
                "it again"
            )
        if part.attrs["count"] and part.attrs["first"] != self._files:
            raise DataError(
                f"{path}: begins with file {part.attrs['first']}, expected file {self._files}; delete the "
                "parts and make them again"
            )
        self.facts = facts
        self._files += int(part.attrs["count"])

    def check(self, output: Path, vocabulary: str = "") -> None:
        """Raises `DataError` if files are missing, or the parts are of another vocabulary."""
        if not self.facts or self._files != self.facts["files"]:
            raise DataError(f"{output}: its parts do not hold all files; make all of them again")
        if self.facts["vocabulary"] != vocabulary:
            raise DataError(f"{output}: its parts are of another vocabulary; make them again")


def _sampled(
    traffic: Traffic, files: range, config: TokenConfig, progress: Progress | None
) -> tuple[MotionSample, bool]:
    """Sample of the training scenarios of some files, and whether an official test set has futures."""
    split_of = splits_of(traffic, config, has_test=True)
    sample, account, has_test = MotionSample(config.seed), Account(), False
    asks = config.splits == "official"

    def is_wanted(number: int, name: str) -> bool:
        if asks and not has_test and traffic.official_split(number, name) == "test":
            return True
        return split_of(number, name) == 0 and sample.wants(name)

    for number in files:
        for scenario in traffic.scenarios(number, account, partial(is_wanted, number)):
            if split_of(number, scenario.name) == 0:
                sample.add(number, scenario)
            else:
                has_test = True
        if progress is not None:
            progress(number + 1 - files.start, len(files))
    return sample, has_test


def _write_vocabulary(
    source: Path, output: Path, config: TokenConfig, sample: MotionSample, has_test: bool
) -> Vocabulary:
    segments = sample.segments()
    if not len(sample):
        raise DataError(
            f"{source}: no scenario is in the training split; expected more scenarios, or a larger "
            "tokens.train"
        )
    if not len(segments[ROAD]):
        raise DataError(f"{source}: the maps hold no lines; expected lanes and road edges")
    random, tokens, coverage = np.random.default_rng(config.seed), [], {}
    for kind, (name, found) in enumerate(zip(NAMES, segments, strict=True)):
        size = config.road if kind == ROAD else config.motion
        if not len(found):
            found = np.zeros((1, 6, 3))
        elif len(found) > _SEGMENTS:
            found = found[random.permutation(len(found))[:_SEGMENTS]]
        made, coverage[name] = k_disks(found, kind, size, config.tolerance, random)
        tokens.append(made)
    vocabulary = Vocabulary(tuple(tokens[:ROAD]), tokens[ROAD], coverage)
    vocabulary.check()
    with create(output) as file:
        file.attrs["schema"] = VOCABULARY_SCHEMA
        file.attrs["config"] = json.dumps(config.written(), sort_keys=True)
        file.attrs["has_test"] = has_test
        vocabulary.write(file.create_group("vocabulary"))
    return vocabulary


def read_vocabulary(path: Path) -> Vocabulary:
    """Read what `build_vocabulary` wrote."""
    with open_checked(path, VOCABULARY_SCHEMA) as file:
        return Vocabulary.read(file["vocabulary"])


def tokenise(
    source: Path,
    vocabulary_file: Path,
    output: Path,
    config: TokenConfig,
    progress: Progress | None = None,
    raw: str = "tracks",
) -> int:
    """Tokenise the scenarios of a directory of raw traffic of the format ``raw``.

    Those between blocks of different splits are left out. `samples.json` beside ``output`` says what was
    read, kept, and left out for which reason.

    Returns
    -------
    int
        Number of scenarios written.

    Raises
    ------
    DataError
        The files are malformed, two scenarios have one name, or one is in no official split.
    """
    vocabulary, traffic = read_vocabulary(vocabulary_file), Traffic(raw, source)
    if traffic.official_splits() and config.splits != "official":
        print(
            "splits: by the names of scenarios, but the data set says what is training, validation and "
            "test; set tokens.splits to official to use that"
        )
    with create(output) as file:
        writer, files = Writer(file), range(len(traffic.files))
        split_of = _splits_with(vocabulary_file, traffic, config)
        made = _tokenise_files(traffic, files, vocabulary, config, split_of, writer, progress)
        written = writer.finish()
        _describe(file, vocabulary, config, traffic.bytes_of_splits(config), made)
    made.account.write(output.with_name("samples.json"))
    return written


def tokenise_part(
    source: Path,
    vocabulary_file: Path,
    output: Path,
    config: TokenConfig,
    part: int,
    parts: int,
    progress: Progress | None = None,
    raw: str = "tracks",
) -> None:
    """Tokenise one of several parts of the files, counted from 0, for `gather_scenarios`."""
    vocabulary, traffic = read_vocabulary(vocabulary_file), Traffic(raw, source)
    files = part_of(len(traffic.files), part, parts)
    with create(output) as file:
        writer = Writer(file)
        split_of = _splits_with(vocabulary_file, traffic, config)
        made = _tokenise_files(traffic, files, vocabulary, config, split_of, writer, progress)
        writer.finish(may_be_empty=True)
        made.write(file)
        _describe_part(file, traffic, files, config, vocabulary.digest)
        splits = np.frombuffer(traffic.bytes_of_splits(config), dtype=np.uint8)
        create_dataset(file, "splits", splits)
        file.attrs["schema"] = PART_SCHEMA


def gather_scenarios(
    parts: Sequence[Path],
    vocabulary_file: Path,
    output: Path,
    config: TokenConfig,
    progress: Progress | None = None,
) -> int:
    """Write what `tokenise` writes, bit by bit, from the files of all parts, in which the scenarios stay.

    Returns their number. Raises `DataError` if a part is missing, damaged, or not of the same raw files and
    settings, or two scenarios have one name.
    """
    vocabulary, made, splits = read_vocabulary(vocabulary_file), _Made(), b""
    whole = _Whole()
    first = {kind: [0] for kind in ROWS}
    columns: dict[str, list[np.ndarray]] = {name: [] for name in OF_SCENARIO}
    shapes: dict[str, list[tuple[Path, tuple[int, ...]]]] = {}
    with create(output) as file:
        for number, path in enumerate(parts):
            with open_checked(path, PART_SCHEMA) as part:
                whole.add(part, path)
                splits = bytes(part["splits"][()])
                made.add(_Made.read(part))
                for kind, bounds in first.items():
                    bounds.extend((bounds[-1] + part["first"][kind][1:]).tolist())
                for name, found in columns.items():
                    found.append(part[name][()])
                for name, _ in datasets_of_rows():
                    if name in part:
                        shapes.setdefault(name, []).append((path, part[name].shape))
            if progress is not None:
                progress(number + 1, len(parts))
        whole.check(output, vocabulary.digest)
        for name, dtype in datasets_of_rows():
            if name in shapes:
                create_virtual(file, name, shapes[name], dtype, output.parent)
        of_scenarios = {name: np.concatenate(found) for name, found in columns.items()}
        written = write_columns(file, first, of_scenarios)
        _describe(file, vocabulary, config, splits, made)
    made.account.write(output.with_name("samples.json"))
    return written


@dataclass
class _Made:
    """What was made of files, in their order."""

    account: Account = field(default_factory=Account)
    digests: list[bytes] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)
    """File of each scenario that was read."""
    appeared: int = 0
    """Agents without a past."""

    def add(self, other: "_Made") -> None:
        """Add what was made of the next files; raises `DataError` if a scenario was there before."""
        for name in other.places.keys() & self.places.keys():
            raise _twice(other.places[name], name, self.places[name])
        self.places |= other.places
        self.account.add(other.account.to_json())
        self.digests += other.digests
        self.appeared += other.appeared

    def write(self, file: h5py.File) -> None:
        """Store in an HDF5 file."""
        places = json.dumps(self.places).encode()
        create_dataset(file, "places", np.frombuffer(places, dtype=np.uint8))
        digests = np.frombuffer(b"".join(self.digests), dtype=np.uint8).reshape(-1, 32)
        create_dataset(file, "digests", digests)
        file.attrs.update(account=json.dumps(self.account.to_json()), appeared=self.appeared)

    @classmethod
    def read(cls, file: h5py.File) -> "_Made":
        """Read what `write` stored."""
        account = Account()
        account.add(json.loads(file.attrs["account"]))
        digests = [bytes(row) for row in file["digests"][()]]
        places = json.loads(bytes(file["places"][()]))
        return cls(account, digests, places, int(file.attrs["appeared"]))


def _tokenise_files(
    traffic: Traffic,
    files: range,
    vocabulary: Vocabulary,
    config: TokenConfig,
    split_of: Callable[[int, str], int | None],
    writer: Writer,
    progress: Progress | None,
) -> _Made:
    tokeniser, made = Tokeniser(vocabulary, config.margin, config.max_agents), _Made()
    for number in files:
        made.add(_tokenise_file(traffic, number, tokeniser, config, split_of, writer))
        if progress is not None:
            progress(number + 1 - files.start, len(files))
    return made


def _tokenise_file(
    traffic: Traffic,
    number: int,
    tokeniser: Tokeniser,
    config: TokenConfig,
    split_of: Callable[[int, str], int | None],
    writer: Writer,
) -> _Made:
    made, path, contents = _Made(), str(traffic.files[number]), list[bytes]()
    scenarios = traffic.scenarios(number, made.account)
    while together := list(islice(scenarios, TOGETHER)):
        for one in together:
            if one.name in made.places:
                raise _twice(path, one.name, path)
            made.places[one.name] = path
            contents.append(content(one))
        for scenario in tokeniser(together, made.account):
            split = split_of(number, scenario.name)
            if split is None:
                made.account.leave_out("scenarios", "between blocks of different splits")
                continue
            made.account.keep("scenarios")
            if config.splits == "official":
                made.account.keep(f"scenarios for {SPLITS[split]}")
            writer.add(scenario, split)
            late = np.isnan(scenario.true_AT3[:, CURRENT_STEP - STRIDE, 0])
            made.appeared += int(late.sum())
    made.digests.append(traffic.digest(number, contents))
    return made


def _twice(path: str, name: str, other: str) -> DataError:
    return DataError(f"{path}: scenario {name!r} is in {other}, too; expected different names")


def _splits_with(
    vocabulary_file: Path, traffic: Traffic, config: TokenConfig
) -> Callable[[int, str], int | None]:
    """Split of each scenario, by what was found out when the vocabulary was built."""
    with open_checked(vocabulary_file, VOCABULARY_SCHEMA) as file:
        has_test = bool(file.attrs.get("has_test", "test" in traffic.official_splits()))
    return splits_of(traffic, config, has_test)


def _describe(
    file: h5py.File, vocabulary: Vocabulary, config: TokenConfig, splits: bytes, made: _Made
) -> None:
    """Add vocabulary, digest and attributes."""
    file.attrs["schema"] = SCHEMA
    file.attrs["config"] = json.dumps(config.written(), sort_keys=True)
    digest = hashlib.sha256(vocabulary.digest.encode())
    for one in (*made.digests, file.attrs["config"].encode(), splits):
        digest.update(one)
    if made.appeared:  # earlier versions left them out: these are other samples
        digest.update(b"agents without a past")
        print(
            f"agents: {made.appeared} were not observed half a second before step {CURRENT_STEP}; their "
            "past is straight, at the velocity of their first observation"
        )
    file.attrs["digest"] = digest.hexdigest()[:16]
    vocabulary.write(file.create_group("vocabulary"))
