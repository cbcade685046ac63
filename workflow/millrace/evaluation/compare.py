"""Two runs side by side: settings that differ, losses, and paired tests over their test cases."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from millrace.errors import DataError, UserError
from millrace.evaluation.paired import FEW_BLOCKS, FEWEST_BLOCKS, Difference, differences
from millrace.evaluation.training_record import read_scores
from millrace.figures.runs import losses_of_two, relative_differences
from millrace.files import atomic_write
from millrace.sealed import write_sealed
from millrace.training import run_hash
from millrace.training.receipt import read_receipt

_AGAIN = "run the evaluate stage again"


@dataclass(frozen=True)
class Side:
    """One of two runs."""

    name: str
    definition: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    """Records of its epochs."""
    cases: Mapping[str, Any] | None = None
    """Errors by test case, see `millrace.evaluation.cases`."""
    missing: str = ""
    """Why there are none."""
    samples: str = ""
    """Their kind."""
    epoch: int | None = None
    """Of the weights that were scored."""

    @classmethod
    def of_store(cls, store: Path, history: Sequence[Mapping[str, Any]], results: Path) -> "Side":
        """A run with its store, and the records of its epochs; scores are in a folder of results."""
        experiment, layout, seed, name = store.absolute().parts[-4:]
        path = results / "evaluate" / experiment / layout / seed / "metrics.json"
        missing = {"missing": f"{path}: no such file; run the evaluate stage first"}
        scored = _of_metrics(path, name) if path.exists() else missing
        definition = run_hash.read_definition(store)
        return cls(f"{experiment}/{layout}/{seed}/{name}", definition, history, **scored)

    @classmethod
    def of_results(cls, metrics: Path, receipt: Path) -> "Side":
        """A run whose store may be gone, by its scores and the receipt of its checkpoint."""
        described = read_receipt(receipt, ("identity", "definition", "history"))
        name = "/".join(str(described[key]) for key in ("experiment", "layout"))
        name += f"/seed{described['seed']}"
        scored = _of_metrics(metrics, described["identity"])
        definition = {**described["definition"], "seed": described["seed"]}
        return cls(name, definition, described["history"], **scored)


def _of_metrics(path: Path, identity: str) -> dict[str, Any]:
    metrics = read_scores(path)
    found = {"samples": metrics.get("samples", ""), "epoch": metrics.get("epoch")}
    if metrics.get("identity") != identity:
        return {"missing": f"{path}: its scores are of other settings of this run; {_AGAIN}"}
    if "cases" not in metrics:
        return found | {
            "missing": f"{path}: it has no errors by test case, as it is of an earlier version; delete it "
            f"and {_AGAIN}"
        }
    return found | {"cases": metrics["cases"]}


@dataclass(frozen=True)
class Comparison:
    """What two runs differ in."""

    a: Side
    b: Side
    settings: Mapping[str, tuple[Any, Any]]
    """Those that differ, of A and of B."""
    differences: Sequence[Difference]
    notes: Sequence[str] = field(default_factory=list)
    """What to bear in mind, and why there are no tests."""

    def record(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "a": self.a.name,
            "b": self.b.name,
            "settings": {key: list(pair) for key, pair in self.settings.items()},
            "differences": [one.record() for one in self.differences],
            "notes": [*self.notes],
        }


def compare(a: Side, b: Side) -> Comparison:
    """Compare two runs; raises `DataError` if their scores have nothing in common."""
    settings = run_hash.changes(a.definition, b.definition)
    notes = [f"{side}: {one.missing}" for side, one in (("A", a), ("B", b)) if one.missing]
    found: list[Difference] = []
    if a.cases is not None and b.cases is not None:
        if a.samples != b.samples:
            raise DataError(
                f"{a.name} is on samples of {a.samples}, {b.name} on {b.samples}; compare runs on one kind"
            )
        found = list(differences(a.cases, b.cases))
        notes += _remarks(found, a, b, settings)
    return Comparison(a, b, settings, found, notes)


def _remarks(
    found: Sequence[Difference], a: Side, b: Side, settings: Mapping[str, Any]
) -> list[str]:
    notes = []
    assert a.cases is not None
    assert b.cases is not None
    cases = max((one.cases for one in found), default=0)
    for side, of in (("A", a.cases), ("B", b.cases)):
        if (left := len(of["names"]) - cases) > 0:
            notes.append(
                f"{left} test cases of {side} are left out: the other run has none of their names"
            )
    blocks = min((one.blocks for one in found), default=0)
    if blocks < 2:
        notes.append("all test cases are in one block: there is no interval")
    elif blocks < FEWEST_BLOCKS:
        notes.append(f"{blocks} blocks are too few to tell which run is better")
    elif blocks < FEW_BLOCKS:
        notes.append(f"{blocks} blocks are few: intervals are too narrow")
    if "data.digest" in settings:
        notes.append("the samples are not the same: cases are matched by their names alone")
    return notes


def write_page(comparison: Comparison, path: Path) -> None:
    """Write a comparison as an HTML page, with its figures inside."""
    environment = Environment(
        loader=PackageLoader("millrace.evaluation", "."), undefined=StrictUndefined, autoescape=True
    )
    template = environment.get_template("compare.html.j2")
    sides = (comparison.a, comparison.b)
    drawn = []
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    figure = folder / f".{path.stem}.svg"
    try:
        if any(one.history for one in sides):
            a, b = ((one.name, one.history) for one in sides)
            losses_of_two(a, b, figure)
            drawn.append(("Validation loss by epoch", _svg(figure)))
        if comparison.differences:
            relative_differences(comparison.differences, figure)
            drawn.append(("Difference of the mean errors, over that of B", _svg(figure)))
    finally:
        figure.unlink(missing_ok=True)
    page = template.render(one=comparison, figures=drawn)
    with atomic_write(path) as partial:
        partial.write_text(page)


def _svg(path: Path) -> Markup:
    text = path.read_text()
    return Markup(text[text.index("<svg") :])


def compare_results(
    metrics: Sequence[Path], receipts: Sequence[Path], page: Path, record: Path
) -> None:
    """Rule compare_runs: compare two runs by their scores and receipts; write a page and its numbers."""
    a, b = (Side.of_results(*pair) for pair in zip(metrics, receipts, strict=True))
    try:
        found = compare(a, b)
    except UserError as error:
        found = Comparison(a, b, run_hash.changes(a.definition, b.definition), [], [str(error)])
    write_page(found, page)
    write_sealed(record, {"schema": "millrace.comparison/1", **found.record()})
