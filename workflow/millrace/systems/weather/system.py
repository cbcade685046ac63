"""Weather: states of the atmosphere, forecast step by step."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from millrace.errors import ConfigError
from millrace.systems.base import (
    Block,
    Cost,
    DivisionLimits,
    Extraction,
    Model,
    RawFormat,
    SampleKind,
    System,
    Table,
    steps_of_demo,
)
from millrace.systems.settings import with_missing
from millrace.systems.weather.settings import WeatherWindowConfig

_HERE = "millrace.systems.weather"


LEADS = (6, 24, 72, 120)
"""Lead times (h) of the table."""
HEADLINE = 24
"""The one that the column ``skill`` is of."""


def _steps(dataset: Block) -> int | None:
    """Times of the demo, every six hours, that are used."""
    weather = dataset.get("weather", {})
    steps, hours = steps_of_demo(dataset), weather.get("hours", 6)
    if weather.get("years"):
        return None
    return None if steps is None else max(0, steps - 1) * 6 // hours + 1


def _kept(dataset: Block) -> dict[str, Any]:
    """Settings of the extraction that are keys of the dataset itself; of copies there are none."""
    kept = {} if dataset.get("store", "copy") == "copy" else {"store": dataset["store"]}
    return kept if dataset.get("compress") is None else {**kept, "compress": dataset["compress"]}


def _cost(copied: Cost, dataset: Block) -> Cost:
    """What states take that stay where they are, or that are rounded and packed.

    Measured on the simulated weather. Of a number the bits that are kept and about one of the other nine
    are written: neighbours have the same sign and nearly the same exponent.
    """
    if dataset.get("store", "copy") == "reference":
        return replace(copied, written=0.0)
    if not dataset.get("compress"):
        return copied
    bits = int(dataset["compress"]["keep_bits"])
    return replace(copied, seconds=copied.seconds + 5 + 0.7 * bits, written=(1 + bits) / 32)


def _check_dataset(name: str, dataset: Block) -> None:
    if dataset.get("store", "copy") == "copy":
        return
    if dataset.get("compress") is not None:
        raise ConfigError(
            f"config: datasets.{name}.compress: states that stay where they are (`store: reference`) are "
            "not written; leave it out"
        )
    if dataset["source"] == "demo":
        raise ConfigError(
            f"config: datasets.{name}.store: the demo writes NetCDF, of which states cannot be read one "
            "by one; leave store out"
        )


def _check(name: str, experiment: Block, dataset: Block) -> None:
    window = WeatherWindowConfig.parse(experiment["data"], "data")
    gap = dataset["split"].get("gap", 0)
    if window.length > gap + 1:
        raise ConfigError(
            f"config: experiments.{name}.data: a window of {window.length} steps reaches over the gap of "
            f"{gap} between the splits, so test data would leak into training: raise split.gap to at least "
            f"{window.length - 1}"
        )


def at_lead(scores: Block, values: Sequence[float | None], hour: float) -> float | None:
    """A score at a lead time (h); None: it was not forecast that far, or not at that time."""
    leads = list(scores["lead_hours"])
    return values[leads.index(hour)] if hour in leads else None


def _rows(run: Block) -> list[dict[str, Any]]:
    test, earlier = run["test"], run["validation"]
    rows = []
    for channel, scores in test["channels"].items():
        skill, before = scores["skill"], earlier["channels"][channel]["skill"]
        row = {
            "variable": channel,
            "skill": at_lead(test, skill, HEADLINE),
            "validation_skill": at_lead(earlier, before, HEADLINE),
            **{f"h{hour}_skill": at_lead(test, skill, hour) for hour in _OTHERS},
        }
        for hour, (key, (_, score, forecast)) in itertools.product(LEADS, _COLUMNS.items()):
            row[f"{key}_h{hour}"] = at_lead(test, scores[score][forecast], hour)
        rows.append(row)
    return rows


def _errors(run: Block) -> dict[str, list[float | None]]:
    scores = [
        one["rmse"] for split in ("validation", "test") for one in run[split]["channels"].values()
    ]
    return {
        name: [e for one in scores for e in one[name]]
        for name in ("model", "persistence", "climatology")
    }


_OTHERS = [hour for hour in LEADS if hour != HEADLINE]
_COLUMNS = {
    "rmse": ("RMSE", "rmse", "model"),
    "persistence": ("RMSE of persistence", "rmse", "persistence"),
    "climatology": ("RMSE of climatology", "rmse", "climatology"),
    "acc": ("ACC", "acc", "model"),
    "persistence_acc": ("ACC of persistence", "acc", "persistence"),
}
"""Title, score and forecast of the columns that are there for each lead time."""

_CAPTION = """\
*all / scorecard*: skill over the better of persistence and climatology by variable, level and lead time;
*all / loss_share*: what each variable adds to the loss. By variable: *by_lead*: error and anomaly
correlation to five days;
*maps*: ground truth, forecast and difference of one forecast; *spectra*: power by zonal wave number,
forecasts against the ground truth."""
_TABLE = Table(
    titles={
        "skill": f"skill at {HEADLINE} h",
        "validation_skill": f"skill at {HEADLINE} h (validation)",
        **{f"h{hour}_skill": f"skill at {hour} h" for hour in _OTHERS},
        **{f"{key}_h{h}": f"{one[0]}, {h} h" for h in LEADS for key, one in _COLUMNS.items()},
    },
    caption="Skill is 1 − RMSE / RMSE of the better of two: persistence, that nothing changes, and "
    "climatology, the mean of the training period, by day of the year if it holds a year. All are "
    "over the sphere, cells by their area, in SI units: K, m/s, Pa, m²/s² (z) and kg/kg (q); numbers "
    "in names are pressure levels (hPa). ACC is the correlation of departures from climatology. "
    "Forecasts feed on themselves, from starts spread over the period.",
    baseline="the better of persistence and climatology",
    rows=_rows,
    first=(
        "skill",
        *(f"h{hour}_skill" for hour in _OTHERS),
        *(f"{name}_h{HEADLINE}" for name in ("rmse", "persistence", "climatology")),
    ),
    errors=_errors,
)
SYSTEM = System(
    name="weather",
    costs={"extract_weather": Cost(seconds=10, written=1.0, memory_gb=1.5, changed=_cost)},
    project=f"{_HERE}:project.yaml.j2",
    formats=(
        RawFormat(
            name="weather",
            holds="files of NetCDF, GRIB or CSV, or that is a Zarr store",
            read_into="weather.h5",
            simulate=f"{_HERE}.simulator.barotropic:write_weather",
            simulation=f"{_HERE}.settings:BarotropicConfig",
            settings=f"{_HERE}.settings:WeatherDatasetSettings",
            check=_check_dataset,
            remote=True,
            still=f"{_HERE}.grown:are_still",
            files=(
                "zarr.json",
                ".zgroup",
                "*.zarr",
                "*.nc",
                "*.nc4",
                "*.grib",
                "*.grib2",
                "*.grb",
                "*.grb2",
            ),
            steps=_steps,
        ),
    ),
    kinds=(
        SampleKind(
            name="weather",
            formats=("weather",),
            dataset=f"{_HERE}.dataset:WeatherDataset",
            settings=f"{_HERE}.settings:WeatherWindowConfig",
            evaluation=f"{_HERE}.evaluation:EVALUATION",
            application=f"{_HERE}.application:APPLICATION",
            caption=_CAPTION,
            extraction=Extraction(
                f"{_HERE}.extract:extract_weather",
                section=lambda dataset: with_missing(
                    dataset, {**dataset.get("weather", {}), **_kept(dataset)}
                ),
                config=f"{_HERE}.settings:WeatherExtraction",
                run_part=f"{_HERE}.extract:extract_part",
                gather=f"{_HERE}.extract:gather",
            ),
            in_parts=True,
            check=_check,
            window=lambda data: WeatherWindowConfig.parse(data, "data").length,
            replay=True,
            outline=f"{_HERE}.outline:outline",
            example={
                "dataset": {
                    "source": "demo",
                    "format": "weather",
                    "demo": {"steps": 40, "spin_up": 0.5},
                    "split": {"train": 0.5, "validation": 0.2, "gap": 3},
                    "weather": {"surface": ["2t"], "air": ["z"], "levels": [500, 850]},
                },
                "data": {},
            },
            table=_TABLE,
        ),
    ),
    models=(
        Model(
            "aurora",
            "weather",
            f"{_HERE}.aurora.spec:SPEC",
            f"{_HERE}.aurora.config:AuroraConfig",
            limits=DivisionLimits(
                heads=lambda config: config.attention_heads,
                stages=lambda config: config.swin_blocks,
                steps=lambda data: data.get("output_steps", 1),
            ),
            example={
                "embed_dim": 8,
                "encoder_depths": [1, 1, 1],
                "decoder_depths": [1, 1, 1],
                "encoder_heads": [1, 2, 2],
                "decoder_heads": [2, 2, 1],
                "perceiver_heads": 1,
                "latent_levels": 2,
                "window": [1, 4, 4],
            },
        ),
    ),
)
