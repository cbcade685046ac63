"""What a configuration asks for: which files, from which, for which runs.

The rules of the workflow only attach wildcards to these answers.
"""

import copy
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from millrace.config import from_mapping, validate
from millrace.data.fingerprint import fingerprint
from millrace.errors import ConfigError, DataError
from millrace.layout import Layout
from millrace.scaling.request import MeasureRequest
from millrace.systems.base import SampleKind, known, resolve
from millrace.systems.registry import formats, kinds, load_plugins, models, raw_format, systems
from millrace.training.parallel.config import ParallelConfig
from millrace.training.request import EXECUTION, Request, decisive

# What a scaling study measures; the other keys of its block say how it is analysed.
_SCALING = {
    "experiments": [],
    "measure": ["n1_gpu1"],
    "modes": ["strong", "weak"],
    "repeats": 3,
    "steps": 30,
}


class Plan:
    """A checked configuration.

    Parameters
    ----------
    config : mapping
        See config/README.md.
    schema : mapping
        JSON schema of the configuration.

    Raises
    ------
    ConfigError
        The first thing that is wrong, with its key.
    """

    def __init__(self, config: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
        self.plugins = load_plugins(_plugins(config))
        validate(config, complete(schema))
        self.datasets: Mapping[str, Any] = config["datasets"]
        self.experiments: Mapping[str, Any] = config["experiments"]
        self.predictions: Mapping[str, Any] = config.get("predictions", {})
        self._run: Mapping[str, Sequence[Any]] = config["run"]
        self.scaling: Mapping[str, Any] = _SCALING | config.get("scaling", {})
        for name in self._run["experiments"]:
            known(name, self.experiments, "run.experiments", "experiment")
        for name, experiment in self.experiments.items():
            for dataset in _datasets(experiment):
                known(dataset, self.datasets, f"experiments.{name}.dataset", "dataset")
                self._check_samples(name, dataset)
        for name, block in self.datasets.items():
            if block["source"] == "demo" and raw_format(block).simulate is None:
                raise ConfigError(
                    f"config: datasets.{name}.source: there is no demo of {block['format']}; give the "
                    f"directory that holds {raw_format(block).holds}"
                )
        for name in self.predictions:
            self._check_prediction(name)
        for name in self.scaling["experiments"]:
            known(name, self.experiments, "scaling.experiments", "experiment")
        self._advice = [note for run in self._divided() if (note := self._check_parallel(*run))]

    def kind(self, experiment: str) -> SampleKind:
        """Kind of samples of an experiment, by its model."""
        return kinds()[models()[self.experiments[experiment]["model"]["name"]].kind]

    def _check_samples(self, name: str, dataset: str) -> None:
        experiment, block, kind = self.experiments[name], self.datasets[dataset], self.kind(name)
        if (found := raw_format(block).name) not in kind.formats:
            raise ConfigError(
                f"config: experiments.{name}: {experiment['model']['name']} takes {kind.name}, which "
                f"cannot be cut from the {found} of {dataset}"
            )
        if experiment["train"].get("replay") and not kind.replay:
            raise ConfigError(
                f"config: experiments.{name}.train.replay: samples of {kind.name} do not follow on each "
                "other; leave it out"
            )
        kind.check(name, experiment, block)
        models()[experiment["model"]["name"]].check(name, experiment["model"])

    def _check_prediction(self, name: str) -> None:
        key, block = f"predictions.{name}", self.predictions[name]
        experiment, source = block["experiment"], block["source"]
        known(experiment, self.experiments, f"{key}.experiment", "experiment")
        if self.kind(experiment).prediction is None:
            raise ConfigError(
                f"config: {key}.experiment: models on {self.kind(experiment).name}, as that of "
                f"{experiment}, are not applied to new raw files"
            )
        readable = self.kind(experiment).formats[0]
        if source in self.datasets and raw_format(self.datasets[source]).name != readable:
            raise ConfigError(
                f"config: {key}.source: {source} has no raw files of format {readable}"
            )

    def _divided(self) -> dict[tuple[str, str], None]:
        """Experiments with a block ``parallel``, and the layouts on which they run or are measured."""
        wanted = [(experiment, layout) for experiment, layout, _ in self._runs()]
        wanted += [(block["experiment"], block["layout"]) for block in self.predictions.values()]
        wanted += product(self.scaling["experiments"], self.scaling["measure"])
        return dict.fromkeys(
            (experiment, str(layout))
            for experiment, name in wanted
            for layout in Layout.entrants(name)
            if "parallel" in self.experiments[experiment]
        )

    def _check_parallel(self, name: str, layout: str) -> str | None:
        """Refuse a division that a model or a layout does not allow; advice, if one is slow."""
        block = self.experiments[name]
        model, train = dict(block["model"]), block["train"]
        made, world_size = model.pop("name"), Layout.parse(layout).world_size
        limits = models()[made].limits
        steps = limits.steps(block["data"]) if limits else 1
        try:
            config = from_mapping(resolve(limits.config), model, "model") if limits else None
            parallel = from_mapping(ParallelConfig, block["parallel"], "parallel").of(
                made, config, world_size, train["global_batch"], steps
            )
            parallel.check_options(
                train.get("compile", False),
                train.get("gradient_compression", "none"),
                train.get("replay") is not None,
            )
        except ConfigError as error:
            raise ConfigError(f"config: experiments.{name} on {layout}: {error}") from None
        advice = parallel.advice(steps)
        return f"experiments.{name} on {layout}: {advice}" if advice else None

    def advice(self) -> list[str]:
        """Sentences about what is allowed, but slow."""
        return list(self._advice)

    def definition(self, experiment: str) -> dict[str, Any]:
        """Return what decides the weights of an experiment."""
        block = self.experiments[experiment]
        return {"data": block["data"], "model": block["model"], "train": decisive(block["train"])}

    def milestones(self, experiment: str) -> list[int]:
        """Epochs whose checkpoints are outputs, in order."""
        train = self.experiments[experiment]["train"]
        every = train.get("milestone_every", train["epochs"])
        return sorted({*range(every, train["epochs"], every), train["epochs"]})

    def checkpoint(self, experiment: str, layout: str, seed: int | str, epoch: int) -> str:
        """Path of a checkpoint."""
        return f"results/train/{experiment}/{layout}/seed{seed}/epoch_{epoch}.ckpt"

    def previous_checkpoint(
        self, experiment: str, layout: str, seed: int | str, epoch: int
    ) -> list[str]:
        """Path of the milestone before an epoch, which its segment continues; empty for the first."""
        earlier = [e for e in self.milestones(experiment) if e < epoch]
        return [self.checkpoint(experiment, layout, seed, earlier[-1])] if earlier else []

    def initial_checkpoint(self, experiment: str, seed: int | str) -> list[str]:
        """Path of the checkpoint that a run's weights come from, if any."""
        init_from = self.experiments[experiment]["train"].get("init_from")
        return [_of_seed(init_from["checkpoint"], seed)] if init_from else []

    def measured_checkpoint(self, experiment: str) -> list[str]:
        """Path of the checkpoint that the measurements of an experiment start from, if any."""
        return self.initial_checkpoint(experiment, self._seeds(experiment)[0])

    def final_checkpoint(self, experiment: str, layout: str, seed: int | str) -> dict[str, str]:
        """Paths of a run's last checkpoint and its receipt."""
        path = self.checkpoint(experiment, layout, seed, self.milestones(experiment)[-1])
        return {"checkpoint": path, "receipt": path.removesuffix(".ckpt") + ".json"}

    def ensemble_checkpoints(self, experiment: str, layout: str) -> dict[str, list[str]]:
        """Paths of the last checkpoints of all seeds, and of their receipts."""
        files = [self.final_checkpoint(experiment, layout, s) for s in self._seeds(experiment)]
        return {f"{key}s": [one[key] for one in files] for key in ("checkpoint", "receipt")}

    def samples(self, experiment: str) -> Mapping[str, str | list[str]]:
        """Paths of the files an experiment's samples are read from, by role; lists for several datasets."""
        block = self.experiments[experiment]
        files = {
            role: [f"results/data/{dataset}/{name}" for dataset in _datasets(block)]
            for role, name in self.kind(experiment).sample_files(block["model"]).items()
        }
        several = not isinstance(block["dataset"], str)
        return files if several else {role: paths[0] for role, paths in files.items()}

    def simulated(self) -> str:
        """Pattern of the names of the datasets whose raw files the rule ``simulate_raw`` makes."""
        names = [n for n, block in self.datasets.items() if raw_format(block).simulate]
        return "|".join(names) or "(?!)"

    def extracted(self) -> str:
        """Pattern of ``{dataset}/{kind}.h5`` of the samples that the rule ``extract_samples`` makes.

        It is for the wildcard ``dataset`` and looks ahead to the kind: other samples of the same datasets
        are made by rules of their systems.
        """
        found = [
            f"{name}(?=/{kind.name}[.])"
            for name, block in self.datasets.items()
            for kind in kinds().values()
            if kind.extraction
            and raw_format(block).name in (kind.extraction.formats or kind.formats)
        ]
        return "|".join(found) or "(?!)"

    def extractions(self) -> list[str]:
        """Jobs of the rule ``extract_samples`` as a cluster's facts name them: one a kind."""
        return [f"extract_{kind.name}" for kind in kinds().values() if kind.extraction]

    def section(self, dataset: str, kind: str) -> dict[str, Any]:
        """Settings of the extraction of samples in one step."""
        extraction = kinds()[kind].extraction
        return dict(extraction.section(self.datasets[dataset])) if extraction else {}

    def simulator_environment(self, dataset: str) -> str:
        """Conda environment in which raw files are simulated, a file of envs/."""
        return raw_format(self.datasets[dataset]).environment

    def rules_of_data(self) -> list[str]:
        """Rules of the systems that make sample files."""
        return [rule for system in systems().values() for rule in system.rules]

    def datasets_in(self, *kinds: str) -> str:
        """Pattern of the names of the datasets whose raw files are of one of these formats."""
        names = [name for name, block in self.datasets.items() if raw_format(block).name in kinds]
        return "|".join(names) or "(?!)"

    def source(self, dataset: str) -> str:
        """Directory of the raw files: simulated by the workflow, or the user's.

        Raises
        ------
        DataError
            The user's directory is not there, and nothing was read from it before (raw files may be
            archived once they are).
        """
        block = self.datasets[dataset]
        source, made = block["source"], raw_format(block)
        if source == "demo":
            return f"results/data/{dataset}/raw"
        read = Path(f"results/data/{dataset}/{made.read_into}")
        _check_directory(source, f"datasets.{dataset}", "demo", read, made.holds)
        return source

    def fingerprint(self, dataset: str) -> Any:
        """Something that changes when the raw files do, and not when they are merely touched."""
        block = self.datasets[dataset]
        return block.get("demo", {}) if block["source"] == "demo" else fingerprint(block["source"])

    def prediction_source(self, prediction: str) -> str:
        """Directory of the raw files of a prediction: those of a dataset, or the user's.

        Raises
        ------
        DataError
            It is not there, and nothing was predicted before.
        """
        source = self.predictions[prediction]["source"]
        if source in self.datasets:
            return self.source(source)
        made = Path(f"results/predict/{prediction}/predictions.h5")
        _check_directory(source, f"predictions.{prediction}", "the name of a dataset", made)
        return source

    def prediction_fingerprint(self, prediction: str) -> Any:
        """Something that changes when the raw files of a prediction do."""
        source = self.predictions[prediction]["source"]
        return self.fingerprint(source) if source in self.datasets else fingerprint(source)

    def predicted_files(self) -> list[str]:
        """Predictions that are configured."""
        return [f"results/predict/{name}/predictions.h5" for name in self.predictions]

    def sample_files(self) -> list[str]:
        """Sample files of all experiments that run."""
        roles = [files for e in self._run["experiments"] for files in self.samples(e).values()]
        return sorted(
            {p for files in roles for p in ([files] if isinstance(files, str) else files)}
        )

    def final_checkpoints(self) -> list[str]:
        """Last checkpoint of every run."""
        return [self.final_checkpoint(*run)["checkpoint"] for run in self._runs()]

    def layouts(self) -> list[str]:
        """Layouts of all runs, also of those that only a prediction asks for."""
        predicting = (block["layout"] for block in self.predictions.values())
        named = [*(layout for _, layout, _ in self._runs()), *predicting]
        return list(dict.fromkeys(str(one) for name in named for one in Layout.entrants(name)))

    def preflights(self) -> list[str]:
        """Reports of the checks inside a job, one a layout."""
        return [f"results/preflight/{layout}.json" for layout in self.layouts()]

    def metrics(self) -> list[str]:
        """Metrics of every run."""
        return [f"results/evaluate/{e}/{n}/seed{s}/metrics.json" for e, n, s in self._runs()]

    def ensembles(self) -> list[str]:
        """Metrics of every ensemble over seeds; none for a single seed or a model that is one by itself."""
        pairs = dict.fromkeys(
            (e, n) for e, n, _ in self._runs() if self.kind(e).ensembles and len(self._seeds(e)) > 1
        )
        return [f"results/evaluate/{e}/{n}/ensemble/metrics.json" for e, n in pairs]

    def scaling_runs(self) -> list[str]:
        """Records of the runs that a scaling study measures."""
        study = self.scaling
        keys = (self._studied(), study["measure"], study["modes"])
        return [
            f"results/scaling/{experiment}/{layout}/{mode}/run_{repeat}.json"
            for experiment, layout, mode, repeat in product(*keys, range(study["repeats"]))
        ]

    def scaling_settings(self) -> dict[str, Any]:
        """What the analysis of a scaling study is asked for, see `millrace.scaling.settings.Settings`."""
        asked = {key: value for key, value in self.scaling.items() if key not in _SCALING}
        epochs = {name: self.experiments[name]["train"]["epochs"] for name in self._studied()}
        return asked | {"epochs": epochs | asked.get("epochs", {})}

    def _studied(self) -> list[str]:
        """Experiments of the scaling study; one that needs a number of GPUs has to be asked for."""
        asked = self.scaling["experiments"]
        return asked or [
            e for e in self._run["experiments"] if "parallel" not in self.experiments[e]
        ]

    def report(self) -> list[str]:
        """What the report stage makes."""
        return [f"results/report/skill.{suffix}" for suffix in ("html", "csv", "png")]

    def _runs(self) -> list[tuple[str, str, int]]:
        return [
            run
            for experiment in self._run["experiments"]
            for run in product([experiment], self._layouts(experiment), self._seeds(experiment))
        ]

    def _layouts(self, experiment: str) -> Sequence[str]:
        block = self.experiments[experiment]
        race = block.get("race")
        return [Layout.race(race)] if race else block.get("layouts", self._run["layouts"])

    def _seeds(self, experiment: str) -> Sequence[int]:
        return _seeds(self.experiments[experiment], self._run)


def complete(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Schema of the configuration with what the systems add: formats, their keys, and models."""
    made: dict[str, Any] = copy.deepcopy(dict(schema))
    dataset = made["$defs"]["dataset"]
    common = dict.fromkeys(("source", "format", "demo"), True)
    default = next(iter(formats()))
    dataset["properties"]["format"] |= {"enum": list(formats()), "default": default}
    dataset["allOf"] = [
        {
            "if": {
                "properties": {"format": {"const": name}},
                "required": [] if name == default else ["format"],
            },
            "then": {
                "required": one.keys.get("required", []),
                "additionalProperties": False,
                "properties": {
                    **common,
                    **dict.fromkeys(one.keys.get("required", []), True),
                    **one.keys.get("properties", {}),
                },
            },
        }
        for name, one in formats().items()
    ]
    name = made["$defs"]["experiment"]["properties"]["model"]["properties"]["name"]
    name["enum"] = list(models())
    return made


def _plugins(config: Mapping[str, Any]) -> list[str]:
    named = config.get("plugins", [])
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise ConfigError(f"config: plugins: expected a list of files or modules, got {named!r}")
    return named


def segment_request(
    config: Mapping[str, Any],
    wildcards: Any,
    definition: Mapping[str, Any],
    inputs: Mapping[str, Any],
    outputs: Mapping[str, str],
) -> Request:
    """Describe the training of a segment.

    Parameters
    ----------
    config : mapping
        The configuration. What is read from here, and not from the definition, is no parameter of the
        rule: changing it must not start a run again.
    wildcards : object
        With the attributes ``experiment, layout, seed, epoch``.
    definition : mapping
        See `Plan.definition`.
    inputs, outputs : mapping
        Files of the rule.
    """
    w = wildcards
    train = config["experiments"][w.experiment]["train"]
    return Request(
        experiment=w.experiment,
        layout=w.layout,
        seed=int(w.seed),
        target_epoch=int(w.epoch),
        definition=_with_seed(definition, w.seed),
        files=_sample_files(inputs),
        runs=f"runs/{w.experiment}/{w.layout}/seed{w.seed}",
        checkpoint=outputs["checkpoint"],
        receipt=outputs["receipt"],
        save_every=train.get("save_every", 1),
        execution={k: v for k, v in train.items() if k in EXECUTION},
        parallel=config["experiments"][w.experiment].get("parallel", {}),
        previous=str(inputs.get("previous") or "") or None,
        final_epoch=train["epochs"],
        plugins=load_plugins(_plugins(config)),
    )


def measure_request(
    config: Mapping[str, Any], wildcards: Any, params: Any, inputs: Mapping[str, Any], output: str
) -> MeasureRequest:
    """Describe the measurement of a layout; the parameters are those of `segment_request`."""
    w = wildcards
    experiment = config["experiments"][w.experiment]
    train = experiment["train"]
    return MeasureRequest(
        experiment=w.experiment,
        layout=w.layout,
        mode=w.mode,
        repeat=int(w.repeat),
        # Weights that a run begins with: there are such of its seeds only.
        definition=_with_seed(params.definition, _seeds(experiment, config["run"])[0]),
        files=_sample_files(inputs),
        output=output,
        steps=params.steps,
        # Records of the run, not of its speed.
        execution={
            k: v for k, v in train.items() if k in EXECUTION and k not in ("profile", "log")
        },
        parallel=experiment.get("parallel", {}),
        plugins=load_plugins(_plugins(config)),
    )


def _sample_files(inputs: Mapping[str, Any]) -> dict[str, str | list[str]]:
    """Files of samples among those of a rule."""
    others = ("previous", "init_from")
    return {k: v if isinstance(v, str) else list(v) for k, v in inputs.items() if k not in others}


def _seeds(experiment: Mapping[str, Any], run: Mapping[str, Any]) -> Sequence[int]:
    """Seeds that an experiment runs with."""
    return experiment.get("seeds", run["seeds"])


def _of_seed(checkpoint: str, seed: int | str) -> str:
    """Path of a checkpoint that may have ``{seed}`` in it: each run starts from the one of its seed."""
    return checkpoint.replace("{seed}", str(seed))


def _with_seed(definition: Mapping[str, Any], seed: int | str) -> dict[str, Any]:
    """Definition of the run of a seed."""
    train = definition.get("train", {})
    if not train.get("init_from"):
        return dict(definition)
    checkpoint = _of_seed(train["init_from"]["checkpoint"], seed)
    init_from = {**train["init_from"], "checkpoint": checkpoint}
    return {**definition, "train": {**train, "init_from": init_from}}


def _check_directory(source: str, key: str, other: str, made: Path, holds: str = "all/") -> None:
    if not Path(source).is_dir() and not made.exists():
        raise DataError(
            f"config: {key}.source: no directory {source!r}; set it to `{other}` or to the directory that "
            f"holds {holds}"
        )


def _datasets(experiment: Mapping[str, Any]) -> list[str]:
    named = experiment["dataset"]
    return [named] if isinstance(named, str) else list(named)
