"""The data stage of a plan: datasets, their raw files, and the parts in which jobs read these."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from millrace.data.division import Division, divide, division_file
from millrace.data.parts import forget
from millrace.errors import DataError
from millrace.input_files import is_address
from millrace.provenance import fingerprint
from millrace.systems.base import RawFormat, SampleKind, resolve
from millrace.systems.registry import kinds, raw_format, systems

PART_BYTES, MOST_PARTS = 16 << 30, 1_000
"""Raw files that a job extracts samples of, and the most jobs unless the configuration says more."""


class DataStage:
    """Datasets of a checked configuration.

    ``datasets`` is its section, in which `count_parts` notes numbers of parts; ``root`` and ``jobs`` are
    those of `millrace.plan.Plan`.
    """

    def __init__(self, datasets: dict[str, Any], root: Path, jobs: bool) -> None:
        self.datasets, self._root, self._jobs = datasets, root, jobs
        self._divisions: dict[tuple[str, str], Division | None] = {}

    def simulated(self) -> str:
        """Return a pattern of the names of datasets whose raw files the rule ``simulate_raw`` makes."""
        return _pattern(n for n, block in self.datasets.items() if raw_format(block).simulate)

    def extracted(self, in_parts: bool = False) -> str:
        """Return a pattern of the names of datasets whose samples are extracted by a generic rule.

        That is ``extract_samples``, or of those that are made in parts ``gather_samples``. The pattern
        looks ahead to the kind in ``{dataset}/{kind}.h5``: rules of the systems make other samples of the
        same datasets.
        """
        return _pattern(
            f"{name}(?=/{kind}[.])"
            for name, kind in self._extractions()
            if (self.parts(name, kind) > 1) == in_parts
        )

    def parted(self) -> str:
        """Return a pattern of the names of datasets in ``{dataset}/parts/{kind}_{part}.h5``."""
        return _pattern(
            f"{name}(?=/parts/{kind}_)"
            for name, kind in self._extractions()
            if self.parts(name, kind) > 1
        )

    def _extractions(self) -> list[tuple[str, str]]:
        """Datasets and the kinds of samples that are extracted of them in one step."""
        return [
            (name, kind.name)
            for name, block in self.datasets.items()
            for kind in kinds().values()
            if kind.extracts(raw_format(block))
        ]

    def parts(self, dataset: str, kind: str) -> int:
        """Return the number of jobs that extract samples, by the configuration or the size of raw files.

        ``kind`` is that of the samples, or the stem of what raw files are read into before.
        """
        division = self._division(dataset, kind)
        return len(division.tickets) if division else 1

    def count_parts(self, *, record: bool = False) -> None:
        """Write the numbers of parts into the configuration, and with ``record`` what is in each for jobs.

        What a division is, is found out once: jobs read it, and count no files.
        """
        every = {
            (name, kind): self._division(name, kind)
            for name, block in self.datasets.items()
            for kind in _in_parts(raw_format(block))
        }
        for (name, kind), division in every.items():
            self.datasets[name]["parts"] = self.parts(name, kind)
            if record and division and division.seen:
                path = division_file(self._root / f"results/data/{name}", kind)
                division.write(path)
                forget(path.parent, kind)

    def part_files(self, dataset: str, kind: str, stem: str | None = None) -> list[str]:
        """Return the paths of the parts of samples in order, or of what is made of the same parts."""
        folder, division = f"results/data/{dataset}/parts", self._division(dataset, kind)
        numbers = division.tickets if division else [0]
        return [f"{folder}/{stem or kind}_{number}.h5" for number in numbers]

    def part_raw(self, dataset: str, kind: str, part: int | str) -> Any:
        """Return a value that changes when the raw files of a part do, to compare with the last run."""
        division = self._division(dataset, kind)
        ticket = division.tickets.get(int(part)) if division else None
        return ticket.raw if ticket else ...

    def share(self, dataset: str, kind: str, part: int | str) -> tuple[str | None, int, int]:
        """Return what a part takes: the file of the division, its number, and the number of parts.

        Without a file, shares are equal.
        """
        division = self._division(dataset, kind)
        path = division_file(self._root / f"results/data/{dataset}", kind)
        written = str(path) if division and division.seen else None
        return written, int(part), self.parts(dataset, kind)

    def _division(self, dataset: str, kind: str) -> Division | None:
        """How the raw files are divided; None: samples are made whole."""
        key = dataset, kind
        if key not in self._divisions:
            self._divisions[key] = self._divide(dataset, kind)
        return self._divisions[key]

    def _divide(self, dataset: str, kind: str) -> Division | None:
        block, raw = self.datasets[dataset], raw_format(self.datasets[dataset])
        if kind not in _in_parts(raw):
            return None
        source, demo = block["source"], block.get("demo", {}) if block["source"] == "demo" else None

        def still(name: str, told: Sequence[Any]) -> Sequence[bool]:
            nothing = [False] * len(told)
            return nothing if raw.still is None else resolve(raw.still)(Path(source) / name, told)

        return divide(
            self._root / f"results/data/{dataset}",
            (kind, _before(raw, kind)),
            source,
            demo=demo,
            asked=block.get("parts"),
            planned=self._jobs,
            still=still,
            sizes=(PART_BYTES, MOST_PARTS),
        )

    def extractions(self) -> list[str]:
        """Return the names of the jobs of ``extract_samples`` in a cluster's facts: one for each kind."""
        return [f"extract_{kind.name}" for kind in kinds().values() if kind.extraction]

    def section(self, dataset: str, kind: str) -> dict[str, Any]:
        """Return the settings of the extraction of samples in one step."""
        extraction = kinds()[kind].extraction
        return dict(extraction.section(self.datasets[dataset])) if extraction else {}

    def compared(self, dataset: str, kind: str) -> tuple[Any, Any]:
        """Return the variables and the other settings of an extraction, to compare with the last run.

        They are separate because they were two parameters of the rules before ``extract_samples``, whose
        outputs stay valid. ``...`` stands for a missing value; Snakemake compares plain values only.
        """
        extraction = kinds()[kind].extraction
        if extraction is None or extraction.config is None:
            return ..., ...
        others = self.section(dataset, kind)
        return others.pop("variables", ...), others

    def simulator_environment(self, dataset: str) -> str:
        """Return the Conda environment in which raw files are simulated, a file of envs/."""
        return raw_format(self.datasets[dataset]).environment

    def rules_of_data(self) -> list[str]:
        """Return the rules of the systems that make sample files."""
        return [rule for system in systems().values() for rule in system.rules]

    def datasets_in(self, *formats: str, kind: str | None = None, in_parts: bool = False) -> str:
        """Return a pattern of the names of datasets whose raw files have one of these formats.

        With a ``kind``, only of those whose samples are made whole, or ``in_parts``.
        """
        return _pattern(
            name
            for name, block in self.datasets.items()
            if raw_format(block).name in formats
            and (kind is None or (self.parts(name, kind) > 1) == in_parts)
        )

    def source(self, dataset: str) -> str:
        """Return the directory of the raw files: simulated by the workflow, or the user's, or an address.

        Raises `DataError` if the user's directory does not exist and nothing was read from it before. (Raw
        files may be archived once they were read.) Whether something is at an address, jobs find out.
        """
        block = self.datasets[dataset]
        source, raw = block["source"], raw_format(block)
        if source == "demo":
            return f"results/data/{dataset}/raw"
        if raw.remote and is_address(source):
            return str(source)
        made = self._root / f"results/data/{dataset}/{raw.read_into}"
        check_directory(source, f"datasets.{dataset}", "demo", made, raw.holds)
        return source

    def raw_folders(self) -> dict[str, tuple[str, list[int]]]:
        """Return the folder of the raw files of each dataset, and the numbers of the parts of samples."""
        found = {}
        for name, block in self.datasets.items():
            kinds_in_parts = _in_parts(raw_format(block))
            every = (self._division(name, kind) for kind in kinds_in_parts)
            numbers = next(([*one.tickets] for one in every if one), [0])
            made = str(self._root / f"results/data/{name}/raw")
            found[name] = made if block["source"] == "demo" else block["source"], numbers
        return found

    def readable(self, dataset: str) -> tuple[str, str]:
        """Return the directory of the raw files and their format, or those of what they were converted to.

        Earlier versions of the workflow converted some; what was made of it stays valid.
        """
        raw = raw_format(self.datasets[dataset])
        folder = f"results/data/{dataset}/{raw.converted}"
        if raw.converted and (self._root / folder).is_dir():
            return folder, raw.converted
        return self.source(dataset), raw.name

    def fingerprint(self, dataset: str) -> Any:
        """Return a value that changes with the content of the raw files, not with their times."""
        block = self.datasets[dataset]
        return block.get("demo", {}) if block["source"] == "demo" else fingerprint(block["source"])


def _in_parts(raw: RawFormat) -> list[str]:
    """What several jobs can make of raw files: kinds of samples, and what these are made of."""
    found = [k.name for k in kinds().values() if k.in_parts and raw.name in k.formats]
    return [*found, Path(raw.read_into).stem] if raw.in_parts else found


def _before(raw: RawFormat, kind: str) -> str:
    """Stem of what the same parts of raw files are read for before."""
    found: SampleKind | RawFormat | None = kinds().get(kind)
    return (found if found is not None and found.in_parts else raw).first_pass


def check_directory(source: str, key: str, other: str, made: Path, holds: str = "all/") -> None:
    """Raise `DataError` if neither the user's directory is there nor what is ``made`` of it.

    It names the ``key``, what that may say instead, ``other``, and what the directory ``holds``.
    """
    if not Path(source).is_dir() and not made.exists():
        raise DataError(
            f"config: {key}.source: no directory {source!r}; set it to `{other}` or to the directory that "
            f"holds {holds}"
        )


def _pattern(alternatives: Iterable[str]) -> str:
    return "|".join(alternatives) or "(?!)"  # which nothing matches
