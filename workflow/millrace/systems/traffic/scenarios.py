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
from millrace.data.parts import Bounds, Parts, Record, keep, kept, read_json, write_json
from millrace.data.shares import Share
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
    write_tracks,
)
from millrace.systems.traffic.settings import TokenConfig
from millrace.systems.traffic.splits import splits_in, splits_of
from millrace.systems.traffic.tokens import STRIDE, Tokeniser
from millrace.systems.traffic.tracks import CURRENT_STEP
from millrace.systems.traffic.vocabulary import NAMES, ROAD, Vocabulary, k_disks

VOCABULARY_SCHEMA = "millrace.vocabulary/1"
PART_SCHEMA, SAMPLE_SCHEMA = "millrace.scenarios_part/2", "millrace.motion_sample/2"

SEGMENTS = 200_000
"""Of a class, or of roads; more do not change their vocabulary."""


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
    sample, has_test, _ = _sampled(traffic, range(len(traffic.files)), config, progress)
    return _write_vocabulary(source, output, config, sample, has_test)


def sample_motion(
    source: Path,
    output: Path,
    config: TokenConfig,
    share: Share,
    progress: Progress | None = None,
    raw: str = "tracks",
) -> None:
    """Write what `gather_vocabulary` needs of a share of the files."""
    traffic = Traffic(raw, source)
    files = share.taken(traffic.units)
    sample, has_test, names = _sampled(traffic, files, config, progress)
    with create(output) as file:
        sample.write(file.create_group("sample"))
        _record(traffic, files, names, config).write(
            file, SAMPLE_SCHEMA, {"config": config.written()}
        )
        file.attrs["has_test"] = has_test


def gather_vocabulary(
    parts: Sequence[Path],
    source: Path,
    output: Path,
    config: TokenConfig,
    progress: Progress | None = None,
    raw: str = "tracks",
) -> Vocabulary:
    """Build the vocabularies of what `sample_motion` wrote: those of `build_vocabulary`, bit by bit."""
    traffic, facts = Traffic(raw, source), {"config": config.written()}
    sample, has_test = MotionSample(config.seed), False
    numbers = {unit: number for number, unit in enumerate(traffic.units)}
    with Parts(parts, SAMPLE_SCHEMA, output, facts, traffic.units, progress) as every:
        for part in every.in_order():
            files = [numbers[str(unit)] for unit in Record.in_part(part).units]
            sample.merge(part["sample"], files)
            has_test = has_test or bool(part.attrs["has_test"])
    every.remove_others()
    return _write_vocabulary(source, output, config, sample, has_test)


def _record(
    traffic: Traffic, files: Sequence[int], names: Sequence[str], config: TokenConfig
) -> Record:
    """What a part says of its files, and of what is said of the splits of its scenarios."""
    paths = [path for number in files for path in traffic.read_from(number)]
    told = {}
    if config.splits == "official" and traffic.table is not None:
        told[traffic.table] = splits_in(traffic.table, names)
    return Record.of(traffic.source, [traffic.units[n] for n in files], [*paths, *told], told)


def _sampled(
    traffic: Traffic, files: Sequence[int], config: TokenConfig, progress: Progress | None
) -> tuple[MotionSample, bool, list[str]]:
    """Sample of the training scenarios of some files, and whether an official test set has futures.

    The third are the names of all scenarios. Places in it have the numbers of the files among these.
    """
    split_of = splits_of(traffic, config, has_test=True)
    sample, account, has_test = MotionSample(config.seed), Account(), False
    asks, names = config.splits == "official", list[str]()

    def is_wanted(number: int, name: str) -> bool:
        names.append(name)
        if asks and not has_test and traffic.official_split(number, name) == "test":
            return True
        return split_of(number, name) == 0 and sample.wants(name)

    for at, number in enumerate(files):
        for scenario in traffic.scenarios(number, account, partial(is_wanted, number)):
            if split_of(number, scenario.name) == 0:
                sample.add(at, scenario)
            else:
                has_test = True
        if progress is not None:
            progress(at + 1, len(files))
    return sample, has_test, names


def _write_vocabulary(
    source: Path, output: Path, config: TokenConfig, sample: MotionSample, has_test: bool
) -> Vocabulary:
    segments = sample.segments()
    if not len(sample):
        raise DataError(
            f"{source}: no scenario is in the training split; expected more scenarios, or a larger "
            "tokens.train"
        )
    if not sum(map(len, segments[ROAD])):
        raise DataError(f"{source}: the maps hold no lines; expected lanes and road edges")
    random, tokens, coverage = np.random.default_rng(config.seed), [], {}
    for kind, (name, parts) in enumerate(zip(NAMES, segments, strict=True)):
        size, count = config.road if kind == ROAD else config.motion, sum(map(len, parts))
        if not count:
            found = np.zeros((1, 6, 3))
        elif count > SEGMENTS:
            found = _rows(parts, random.permutation(count)[:SEGMENTS])
        else:
            found = np.concatenate(parts)
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


def _rows(parts: Sequence[np.ndarray], chosen_S: np.ndarray) -> np.ndarray:
    """Rows of arrays that follow each other, without all of them as one."""
    found = np.empty((len(chosen_S), *parts[0].shape[1:]), dtype=parts[0].dtype)
    order_S, first = np.argsort(chosen_S), 0
    increasing_S = chosen_S[order_S]
    for part in parts:
        begin, end = np.searchsorted(increasing_S, [first, first + len(part)])
        found[order_S[begin:end]] = part[increasing_S[begin:end] - first]
        first += len(part)
    return found


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
    share: Share,
    progress: Progress | None = None,
    raw: str = "tracks",
) -> None:
    """Tokenise a share of the files, for `gather_scenarios`.

    What the part held before stays if only the vocabulary was made again, and is the same.
    """
    vocabulary, facts = _facts(vocabulary_file, config)
    found = output.with_name(output.name.replace("scenarios", "motion"))
    if kept(output, PART_SCHEMA, facts, before=found, both=vocabulary_file):
        return
    traffic = Traffic(raw, source)
    files = share.taken(traffic.units)
    with create(output) as file:
        writer = Writer(file)
        split_of = _splits_with(vocabulary_file, traffic, config)
        made = _tokenise_files(traffic, files, vocabulary, config, split_of, writer, progress)
        writer.finish(may_be_empty=True)
        made.write(file)
        _record(traffic, files, [*made.places], config).write(file, PART_SCHEMA, facts)
    keep(output)


def _facts(vocabulary_file: Path, config: TokenConfig) -> tuple[Vocabulary, dict[str, Any]]:
    """The vocabulary, and what the tokens of all parts have in common."""
    vocabulary = read_vocabulary(vocabulary_file)
    with open_checked(vocabulary_file, VOCABULARY_SCHEMA) as file:
        has_test = bool(file.attrs.get("has_test", False))
    told = {"config": config.written(), "vocabulary": vocabulary.digest, "has_test": has_test}
    return vocabulary, told


def gather_scenarios(
    parts: Sequence[Path],
    source: Path,
    vocabulary_file: Path,
    output: Path,
    config: TokenConfig,
    progress: Progress | None = None,
    raw: str = "tracks",
) -> int:
    """Write what `tokenise` writes, bit by bit, from the files of all parts, in which the scenarios stay.

    Returns their number. Raises `DataError` if a part is missing, damaged, or not of the same raw files and
    settings, or two scenarios have one name.
    """
    traffic, made = Traffic(raw, source), _Made()
    vocabulary, facts = _facts(vocabulary_file, config)

    def of_scenarios(part: h5py.File) -> np.ndarray:
        return np.asarray(part["scenarios"][()])

    def of_rows(kind: str) -> Bounds:
        return lambda part: part[f"first/{kind}"][()][of_scenarios(part)]

    every = Parts(parts, PART_SCHEMA, output, facts, traffic.units, progress)
    with create(output) as file, every:
        for part in every.in_order():
            made.add(_Made.read(part))
        made.digests = [every.rows("digests").tobytes()]
        for name, dtype in datasets_of_rows():
            if pieces := every.virtual(name, of_rows(name.partition("/")[0])):
                create_virtual(file, name, pieces, dtype, output.parent)
        first = {
            kind: [0, *np.cumsum(every.rows(f"rows/{kind}", of_scenarios)).tolist()]
            for kind in ROWS
        }
        columns = {name: every.rows(name, of_scenarios) for name in OF_SCENARIO}
        written = write_columns(file, first, columns)
        write_tracks(file, every.pieces("track", of_rows("agent")))
        _describe(file, vocabulary, config, traffic.bytes_of_splits(config), made)
    made.account.write(output.with_name("samples.json"))
    every.remove_others()
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
    scenarios: list[int] = field(default_factory=list)
    """Scenarios of each file that were kept."""

    def add(self, other: "_Made") -> None:
        """Add what was made of the next files; raises `DataError` if a scenario was there before."""
        for name in other.places.keys() & self.places.keys():
            raise _twice(other.places[name], name, self.places[name])
        self.places |= other.places
        self.account.add(other.account.to_json())
        self.digests += other.digests
        self.appeared += other.appeared
        self.scenarios += other.scenarios

    def write(self, file: h5py.File) -> None:
        """Store in an HDF5 file."""
        write_json(file, "places", self.places)
        digests = np.frombuffer(b"".join(self.digests), dtype=np.uint8).reshape(-1, 32)
        create_dataset(file, "digests", digests)
        create_dataset(file, "scenarios", np.cumsum([0, *self.scenarios]))
        for kind in ROWS:
            create_dataset(file, f"rows/{kind}", np.diff(file[f"first/{kind}"][()]))
        file.attrs.update(account=json.dumps(self.account.to_json()), appeared=self.appeared)

    @classmethod
    def read(cls, file: h5py.File) -> "_Made":
        """Read what `write` stored."""
        account = Account()
        account.add(json.loads(file.attrs["account"]))
        places = read_json(file, "places")
        return cls(account, places=places, appeared=int(file.attrs["appeared"]))


def _tokenise_files(
    traffic: Traffic,
    files: Sequence[int],
    vocabulary: Vocabulary,
    config: TokenConfig,
    split_of: Callable[[int, str], int | None],
    writer: Writer,
    progress: Progress | None,
) -> _Made:
    tokeniser, made = Tokeniser(vocabulary, config.margin, config.max_agents), _Made()
    for done, number in enumerate(files, 1):
        made.add(tokenise_file(traffic, number, tokeniser, config, split_of, writer))
        if progress is not None:
            progress(done, len(files))
    return made


def tokenise_file(
    traffic: Traffic,
    number: int,
    tokeniser: Tokeniser,
    config: TokenConfig,
    split_of: Callable[[int, str], int | None],
    writer: Writer,
) -> _Made:
    """Tokenise the scenarios of a file of raw traffic and give them to a writer; says what was read."""
    made, path, contents = _Made(), str(traffic.files[number]), list[bytes]()
    written = 0
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
            written += 1
            late = np.isnan(scenario.true_AT3[:, CURRENT_STEP - STRIDE, 0])
            made.appeared += int(late.sum())
        together.clear()  # not beside the next ones
    made.digests.append(traffic.digest(number, contents))
    made.scenarios.append(written)
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
