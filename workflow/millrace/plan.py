"""The plan of a configuration: its runs, the files of each stage, and the inputs of each file.

The rules of the workflow only attach wildcards to these methods.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, product
from pathlib import Path
from typing import Any

from millrace.configuration import read_configuration
from millrace.data.split import check_periods
from millrace.data_stage import DataStage, check_directory
from millrace.errors import ConfigError
from millrace.input_files import is_address
from millrace.layout import Layout
from millrace.provenance import fingerprint
from millrace.scaling.settings import AnalysisSettings, ScalingSettings
from millrace.sweeps.experiments import Experiments
from millrace.sweeps.sweep import Sweep, read_sweeps
from millrace.systems.base import SampleKind, check_replay, dataset_names, known
from millrace.systems.registry import kinds, models, raw_format
from millrace.systems.settings import SplitConfig
from millrace.training.parallel.config import ParallelConfig
from millrace.training.published import is_on_hub, published_file
from millrace.training.request import decisive

# Keys of the block `scaling` that say what is measured; the others are settings of the analysis.
_MEASURED = ScalingSettings.model_fields.keys() - AnalysisSettings.model_fields.keys()


MOST_RUNS = 10_000
"""Of a configuration, sweeps aside."""


class Plan:
    """A checked configuration.

    The keys of ``config`` are in docs/reference/config.md. ``root`` is the parent of ``results/``: another
    folder if a module of Snakemake gives the workflow a prefix. Plug-in files that are not in the working
    directory are in one of ``folders``. With ``jobs`` it is read again for a job of a run that was planned
    before, and looks at no raw files. Raises `ConfigError` with the first mistake and its key. ``config``
    itself stays as it is.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        root: Path = Path(),
        folders: Iterable[Path] = (),
        *,
        jobs: bool = False,
    ) -> None:
        self._root = root
        self.config: dict[str, Any]
        """The configuration as jobs take it, with numbers for texts such as ``5e-3``."""
        self.config, self.plugins = read_configuration(config, folders)
        config = self.config
        self.datasets: Mapping[str, Any] = config["datasets"]
        self.data = DataStage(config["datasets"], root, jobs)
        """Raw files of the datasets, and the parts in which they are read."""
        self.sweeps: Mapping[str, Sweep] = read_sweeps(config["experiments"])
        self.experiments: Mapping[str, Any] = Experiments(config["experiments"], self.sweeps)
        self.predictions: Mapping[str, Any] = config.get("predictions", {})
        self.comparisons: Mapping[str, Any] = config.get("comparisons", {})
        self._run: Mapping[str, Sequence[Any]] = config["run"]
        self.scaling = ScalingSettings.parse(config.get("scaling", {}), "config: scaling")
        for name in self._run["experiments"]:
            known(name, self.experiments, "run.experiments", "experiment")
        self._check_number_of_runs()
        for name, block in self.datasets.items():
            if block["source"] == "demo" and raw_format(block).simulate is None:
                raise ConfigError(
                    f"config: datasets.{name}.source: there is no demo of {block['format']}; give the "
                    f"directory that holds {raw_format(block).holds}"
                )
            raw_format(block).check(name, block)
        self._advice: list[str] = []
        for name, experiment in self.experiments.items():
            for dataset in dataset_names(experiment):
                known(dataset, self.datasets, f"experiments.{name}.dataset", "dataset")
                self._check_samples(name, dataset)
        for name in self.comparisons:
            self._check_comparison(name)
        for name in self.predictions:
            self._check_prediction(name)
        for name in self.scaling.experiments:
            known(name, self.experiments, "scaling.experiments", "experiment")
        self._advice += [note for run in self._divided() if (note := self._check_parallel(*run))]
        for name in self.sweeps:
            self._check_trials(name, folders)

    def kind(self, experiment: str) -> SampleKind:
        """Return the kind of samples of an experiment, which its model determines."""
        return kinds()[models()[self.experiments[experiment]["model"]["name"]].kind]

    def _check_number_of_runs(self) -> None:
        # Snakemake plans for minutes, and in gigabytes, what nobody would train.
        asked = [e for e in self._run["experiments"] if e not in self.sweeps]
        runs = sum(len(self._layouts(e)) * len(self._seeds(e)) for e in asked)
        if runs > MOST_RUNS:
            raise ConfigError(
                f"config: run: the layouts and seeds of {len(asked)} experiments make {runs:,} runs; "
                f"expected {MOST_RUNS:,} or fewer"
            )

    def _check_samples(self, name: str, dataset: str) -> None:
        experiment, block, kind = self.experiments[name], self.datasets[dataset], self.kind(name)
        raw = raw_format(block)
        if raw.name not in kind.formats:
            raise ConfigError(
                f"config: experiments.{name}: {experiment['model']['name']} takes {kind.name}, which "
                f"cannot be made from the {raw.name} of {dataset}"
            )
        check_replay(name, experiment, kind)
        model = models()[experiment["model"]["name"]]
        notes = (kind.check(name, experiment, block), model.check(name, experiment["model"]))
        self._advice += [note for note in notes if note]
        # With the defaults of the simulator.
        steps = raw.steps(raw.dataset_settings().parse(block, "config:").model_dump())
        if steps is not None and "split" in block:
            split = SplitConfig.parse(block["split"], "split")
            try:
                check_periods(steps, split, kind.window(experiment["data"]))
            except ConfigError as error:
                raise ConfigError(
                    f"config: datasets.{dataset}.split (for experiments.{name}): {error}"
                ) from None

    def _check_prediction(self, name: str) -> None:
        key, block = f"predictions.{name}", self.predictions[name]
        experiment, source = block["experiment"], block["source"]
        known(experiment, self.experiments, f"{key}.experiment", "experiment")
        if experiment in self.sweeps:
            raise ConfigError(
                f"config: {key}.experiment: {experiment} is a sweep; name one of its trials, such as "
                f"that of results/sweeps/{experiment}/chosen.yaml"
            )
        if self.kind(experiment).application is None:
            raise ConfigError(
                f"config: {key}.experiment: models on {self.kind(experiment).name}, as that of "
                f"{experiment}, are not applied to new raw files"
            )
        readable = self.kind(experiment).formats
        if source in self.datasets and raw_format(self.datasets[source]).name not in readable:
            raise ConfigError(
                f"config: {key}.source: {source} has no raw files of format {' or '.join(readable)}"
            )

    def _check_comparison(self, name: str) -> None:
        of = {side: self.comparisons[name][side]["experiment"] for side in ("a", "b")}
        for side, experiment in of.items():
            key = f"comparisons.{name}.{side}.experiment"
            known(experiment, self.experiments, key, "experiment")
            if experiment in self.sweeps:
                raise ConfigError(f"config: {key}: {experiment} is a sweep; name one of its trials")
        kinds_of = {side: self.kind(experiment).name for side, experiment in of.items()}
        if len({*kinds_of.values()}) > 1:
            raise ConfigError(
                f"config: comparisons.{name}: {of['a']} is on samples of {kinds_of['a']}, {of['b']} on "
                f"{kinds_of['b']}; compare experiments on one kind"
            )

    def trainings(self) -> list[tuple[str, str, str]]:
        """Return each experiment that runs, a layout that trains it, and the rule of the job.

        Those that only a prediction or a comparison requires, or that the section ``scaling`` names, are
        among them.
        """
        wanted = [(experiment, layout, "train_segment") for experiment, layout, _ in self._runs()]
        predicting = [*self.predictions.values(), *self._compared()]
        wanted += [(block["experiment"], block["layout"], "train_segment") for block in predicting]
        measured = product(self.scaling.experiments, self.scaling.measure)
        wanted += [(experiment, layout, "measure_throughput") for experiment, layout in measured]
        entrants = (
            (experiment, str(layout), rule)
            for experiment, name, rule in wanted
            for layout in Layout.entrants(name)
        )
        return list(dict.fromkeys(entrants))

    def _check_trials(self, name: str, folders: Iterable[Path]) -> None:
        """Check the trials of a sweep as if each had been written by hand."""
        sweep, base = self.sweeps[name], self.config["experiments"][name]
        try:
            trials = {sweep.name(v): sweep.block(base, v) for v in sweep.checked()}
            run = {**self._run, "experiments": [*trials]}
            alone = {"run": run, "datasets": self.datasets, "experiments": trials}
            Plan(alone, self._root, folders)
        except ConfigError as error:
            raise ConfigError(f"{error} (a trial of experiments.{name}.sweep)") from None
        for own in {*self.experiments} - {name}:
            values, written = sweep.values(own), self.definition(own)
            if values and written != _definition(sweep.block(base, values)):
                raise ConfigError(
                    f"config: experiments.{own}: it has the name of a trial of the sweep of {name}, but "
                    "other settings; rename it"
                )

    def _divided(self) -> dict[tuple[str, str], None]:
        """Experiments with a section ``parallel``, and the layouts on which they run or are measured."""
        pairs = ((experiment, layout) for experiment, layout, _ in self.trainings())
        return dict.fromkeys(pair for pair in pairs if "parallel" in self.experiments[pair[0]])

    def parallel(self, experiment: str, layout: str) -> tuple[ParallelConfig, int]:
        """Return how an experiment is divided on a layout, and the steps of its rollout.

        Raises `ConfigError` if the model or the layout does not allow it.
        """
        block = self.experiments[experiment]
        keys, train = dict(block["model"]), block["train"]
        model, world_size = models()[keys.pop("name")], Layout.parse(layout).world_size
        steps = model.limits.steps(block["data"]) if model.limits else 1
        config = model.model_settings().parse(keys, "model")
        parallel = ParallelConfig.parse(block.get("parallel", {}), "parallel").for_model(
            model.name, config, world_size, train["global_batch"], steps
        )
        parallel.check_options(
            train.get("compile", False),
            train.get("gradient_compression", "none"),
            train.get("replay") is not None,
        )
        return parallel, steps

    def _check_parallel(self, name: str, layout: str) -> str | None:
        """Refuse a division that the model or the layout does not allow; return advice if it is slow."""
        try:
            parallel, steps = self.parallel(name, layout)
        except ConfigError as error:
            raise ConfigError(f"config: experiments.{name} on {layout}: {error}") from None
        advice = parallel.advice(steps)
        return f"experiments.{name} on {layout}: {advice}" if advice else None

    def advice(self) -> list[str]:
        """Return sentences about settings that are allowed, but slow or doubtful."""
        return list(dict.fromkeys(self._advice))

    def definition(self, experiment: str) -> dict[str, Any]:
        """Return the settings that decide the weights of an experiment."""
        return _definition(self.experiments[experiment])

    def milestones(self, experiment: str) -> list[int]:
        """Return the epochs whose checkpoints are outputs, in order."""
        train = self.experiments[experiment]["train"]
        every = train.get("milestone_every") or train["epochs"]
        return sorted({*range(every, train["epochs"], every), train["epochs"]})

    def checkpoint(self, experiment: str, layout: str, seed: int | str, epoch: int) -> str:
        """Return the path of a checkpoint."""
        return f"results/train/{experiment}/{layout}/seed{seed}/epoch_{epoch}.ckpt"

    def previous_checkpoint(
        self, experiment: str, layout: str, seed: int | str, epoch: int | str
    ) -> list[str]:
        """Return the path of the milestone that an epoch's segment continues from; empty for the first."""
        earlier = [e for e in self.milestones(experiment) if e < int(epoch)]
        return [self.checkpoint(experiment, layout, seed, earlier[-1])] if earlier else []

    def initial_checkpoint(self, experiment: str, seed: int | str) -> list[str]:
        """Return the path of the checkpoint that initialises a run's weights, if any."""
        init_from = self.experiments[experiment]["train"].get("init_from") or {}
        if published := init_from.get("published"):
            # What is elsewhere, jobs fetch themselves.
            return [] if is_on_hub(published) else [str(published_file(published))]
        # Each run starts from the checkpoint of its seed.
        return [init_from["checkpoint"].replace("{seed}", str(seed))] if init_from else []

    def measured_checkpoint(self, experiment: str) -> list[str]:
        """Return the path of the checkpoint that the measurements of an experiment start from, if any."""
        return self.initial_checkpoint(experiment, self._seeds(experiment)[0])

    def final_checkpoint(self, experiment: str, layout: str, seed: int | str) -> dict[str, str]:
        """Return the paths of a run's last checkpoint and its receipt."""
        path = self.checkpoint(experiment, layout, seed, self.milestones(experiment)[-1])
        return {"checkpoint": path, "receipt": path.removesuffix(".ckpt") + ".json"}

    def ensemble_checkpoints(self, experiment: str, layout: str) -> dict[str, list[str]]:
        """Return the paths of the last checkpoints of all seeds, and of their receipts."""
        files = [self.final_checkpoint(experiment, layout, s) for s in self._seeds(experiment)]
        return {f"{key}s": [one[key] for one in files] for key in ("checkpoint", "receipt")}

    def predicting_checkpoint(self, prediction: str) -> dict[str, str]:
        """Return the paths of the checkpoint of a prediction, and of its receipt."""
        block = self.predictions[prediction]
        return self.final_checkpoint(block["experiment"], block["layout"], block["seed"])

    def samples(self, experiment: str) -> Mapping[str, str | list[str]]:
        """Return the paths of an experiment's sample files by role; lists for several datasets."""
        block = self.experiments[experiment]
        files = {
            role: [f"results/data/{dataset}/{name}" for dataset in dataset_names(block)]
            for role, name in self.kind(experiment).sample_files(block["model"]).items()
        }
        several = not isinstance(block["dataset"], str)
        return files if several else {role: paths[0] for role, paths in files.items()}

    def benchmarks(self) -> str:
        """Return the folder in which Snakemake keeps what jobs took."""
        return str(self._root / "benchmarks")

    def prediction_source(self, prediction: str) -> str:
        """Return the directory of the raw files of a prediction: that of a dataset, or the user's.

        Raises `DataError` if it does not exist and nothing was predicted before.
        """
        source = self.predictions[prediction]["source"]
        if source in self.datasets:
            return self.data.source(source)
        made = self._root / f"results/predict/{prediction}/predictions.nc"
        check_directory(source, f"predictions.{prediction}", "the name of a dataset", made)
        return source

    def prediction_fingerprint(self, prediction: str) -> Any:
        """Return a value that changes with the raw files of a prediction, and with its options."""
        source = self.predictions[prediction]["source"]
        options = self.predictions[prediction].get("options")
        of_files = self.data.fingerprint(source) if source in self.datasets else fingerprint(source)
        # Predictions of versions that knew no options are not made again.
        return {"files": of_files, "options": options} if options else of_files

    def outside(self) -> list[Path]:
        """Return what the user names and jobs read: raw files, folders of checkpoints to start from."""
        blocks = [*self.datasets.values(), *self.predictions.values()]
        elsewhere = ("demo", *self.datasets)
        sources = (b["source"] for b in blocks if not is_address(b["source"]))
        paths = [Path(source) for source in sources if source not in elsewhere]
        for experiment in self.config["experiments"].values():
            if init_from := experiment["train"].get("init_from"):
                if published := init_from.get("published"):
                    paths += [] if is_on_hub(published) else [published_file(published).parent]
                    continue
                before = init_from["checkpoint"].partition("{seed}")[0]
                paths.append(Path(before.rpartition("/")[0]))
        return paths

    def _compared(self) -> list[dict[str, Any]]:
        return [block[side] for block in self.comparisons.values() for side in ("a", "b")]

    def compared_runs(self, comparison: str) -> dict[str, list[str]]:
        """Return the paths of the scores of the two runs of a comparison, and of their receipts."""
        block = self.comparisons[comparison]
        runs = [
            tuple(block[side][key] for key in ("experiment", "layout", "seed")) for side in "ab"
        ]
        return {
            "metrics": [f"results/evaluate/{e}/{n}/seed{s}/metrics.json" for e, n, s in runs],
            "receipts": [self.final_checkpoint(*run)["receipt"] for run in runs],
        }

    def compared_files(self) -> list[str]:
        """Return the paths of the pages of all configured comparisons."""
        return [f"results/compare/{name}.html" for name in self.comparisons]

    def predicted_files(self) -> list[str]:
        """Return the paths of all configured predictions."""
        return [f"results/predict/{name}/predictions.nc" for name in self.predictions]

    def sample_files(self) -> list[str]:
        """Return the paths of the sample files of all experiments that run."""
        trials = chain.from_iterable(self.sweeps[e].trials or () for e in self.swept())
        names = (*self._run["experiments"], *trials)
        roles = [files for e in names for files in self.samples(e).values()]
        paths = ([files] if isinstance(files, str) else files for files in roles)
        return sorted(set(chain.from_iterable(paths)))

    def swept(self) -> list[str]:
        """Return the experiments that run and are sweeps; of each only the chosen trial is evaluated."""
        return [name for name in self._run["experiments"] if name in self.sweeps]

    def trial_receipts(self, experiment: str, trials: Mapping[str, int]) -> list[str]:
        """Return the paths of the receipts of trials of a sweep at an epoch each, for all of its seeds.

        Trials are trained on the first layout of the experiment.
        """
        layout = self._layouts(experiment)[0]
        seeds = self.sweeps[experiment].seeds or self._seeds(experiment)
        paths = (
            self.checkpoint(name, layout, seed, epoch)
            for name, epoch in trials.items()
            for seed in seeds
        )
        return [path.removesuffix(".ckpt") + ".json" for path in paths]

    def sweep_tables(self) -> list[str]:
        """Return the paths of the tables of all sweeps that run."""
        return [f"results/sweeps/{name}/table.html" for name in self.swept()]

    def final_checkpoints(self, experiments: Iterable[str] | None = None) -> list[str]:
        """Return the path of the last checkpoint of every run of some experiments.

        Default, here and of the two below, are those that run and are known when planning: no sweeps.
        """
        return [self.final_checkpoint(*run)["checkpoint"] for run in self._runs_of(experiments)]

    def layouts(self) -> list[str]:
        """Return the layouts of all runs, and those that a prediction or a comparison requires."""
        others = (block["layout"] for block in (*self.predictions.values(), *self._compared()))
        named = [*(layout for _, layout, _ in self._runs()), *others]
        return list(dict.fromkeys(str(one) for name in named for one in Layout.entrants(name)))

    def preflights(self) -> list[str]:
        """Return the paths of the reports of the checks inside a job, one for each layout."""
        return [f"results/preflight/{layout}.json" for layout in self.layouts()]

    def metrics(self, experiments: Iterable[str] | None = None) -> list[str]:
        """Return the paths of the metrics of every run."""
        runs = self._runs_of(experiments)
        return [f"results/evaluate/{e}/{n}/seed{s}/metrics.json" for e, n, s in runs]

    def ensembles(self, experiments: Iterable[str] | None = None) -> list[str]:
        """Return the paths of the metrics of every ensemble over seeds.

        There is none for a single seed, or for a kind of samples whose seeds are not scored together.
        """
        pairs = dict.fromkeys(
            (e, n)
            for e, n, _ in self._runs_of(experiments)
            if self.kind(e).ensembles and len(self._seeds(e)) > 1
        )
        return [f"results/evaluate/{e}/{n}/ensemble/metrics.json" for e, n in pairs]

    def other_metrics(self) -> list[str]:
        """Return the paths of metrics of runs and ensembles that exist and are not asked for.

        They are looked for where the workflow runs, below the prefix of a module. Trials of sweeps are not
        among them: the chosen ones are asked for, and of others no test scores are shown.
        """
        asked = {self._root / name for name in (*self.metrics(), *self.ensembles())}
        found = self._root.glob("results/evaluate/*/*/*/metrics.json")
        trials = [sweep.values for sweep in self.sweeps.values()]
        return sorted(
            str(path)
            for path in found
            if path not in asked and not any(values(path.parts[-4]) for values in trials)
        )

    def scaling_runs(self) -> list[str]:
        """Return the paths of the records of a scaling study."""
        study = self.scaling
        keys = (self._studied(), study.measure, study.modes)
        return [
            f"results/scaling/{experiment}/{layout}/{mode}/run_{repeat}.json"
            for experiment, layout, mode, repeat in product(*keys, range(study.repeats))
        ]

    def scaling_settings(self) -> dict[str, Any]:
        """Return the `millrace.scaling.settings.AnalysisSettings` of the analysis, without defaults."""
        given = self.config.get("scaling", {})
        settings = {key: value for key, value in given.items() if key not in _MEASURED}
        epochs = {name: self.experiments[name]["train"]["epochs"] for name in self._studied()}
        return settings | {"epochs": epochs | settings.get("epochs", {})}

    def _studied(self) -> list[str]:
        """Experiments of the scaling study; divided ones, which need a number of GPUs, must be named."""
        whole = (e for e in self._run["experiments"] if "parallel" not in self.experiments[e])
        return list(self.scaling.experiments or whole)

    def report(self) -> list[str]:
        """Return the paths of the outputs of the report stage."""
        return [f"results/report/skill.{suffix}" for suffix in ("html", "csv", "png")]

    def _runs(self) -> list[tuple[str, str, int]]:
        return self._runs_of(self._run["experiments"])

    def _runs_of(self, experiments: Iterable[str] | None) -> list[tuple[str, str, int]]:
        if experiments is None:
            experiments = [name for name in self._run["experiments"] if name not in self.sweeps]
        return [
            run
            for experiment in experiments
            for run in product([experiment], self._layouts(experiment), self._seeds(experiment))
        ]

    def _layouts(self, experiment: str) -> Sequence[str]:
        block = self.experiments[experiment]
        race = block.get("race")
        return [Layout.race(race)] if race else block.get("layouts") or self._run["layouts"]

    def _seeds(self, experiment: str) -> Sequence[int]:
        return self.experiments[experiment].get("seeds") or self._run["seeds"]


def _definition(block: Mapping[str, Any]) -> dict[str, Any]:
    return {"data": block["data"], "model": block["model"], "train": decisive(block["train"])}
