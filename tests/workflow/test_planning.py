"""What runs again, and what must not."""

import csv
import os
import shutil
import time

import pytest
from project import Project

EVALUATED_AGAIN = {"evaluate_run": 1, "summarise_skill": 1}


def test_finished_project_has_nothing_to_do(project):
    assert project.planned() == {}


def test_more_epochs_plan_only_new_segments(project):
    project.config["experiments"]["tiny"]["train"]["epochs"] = 8
    assert project.planned() == {"train_segment": 2, **EVALUATED_AGAIN}


def test_fewer_epochs_train_nothing(project):
    project.config["experiments"]["tiny"]["train"]["epochs"] = 2
    assert "train_segment" not in project.planned()


def test_another_save_interval_plans_nothing(project):
    project.config["experiments"]["tiny"]["train"]["save_every"] = 2
    assert project.planned() == {}


def test_new_layout_plans_only_its_jobs(project):
    project.config["run"]["layouts"] = ["n1_gpu1", "n4_gpu1"]
    assert project.planned() == {"train_segment": 2, "evaluate_run": 1, "summarise_skill": 1}


def test_a_second_seed_makes_an_ensemble(project):
    project.config["run"]["seeds"] = [0, 1]
    new = {"train_segment": 2, "evaluate_run": 1, "evaluate_ensemble": 1, "summarise_skill": 1}
    assert project.planned() == new


@pytest.mark.slow
def test_the_table_is_made_again_when_results_hold_another_run(project):
    run = project.path("results/evaluate/tiny/n1_gpu1")
    shutil.copytree(run / "seed0", run / "seed7")
    assert project.planned() == {"summarise_skill": 1}
    project.run("-R", "summarise_skill")
    with project.path("results/report/skill.csv").open() as table:
        assert [row["asked"] for row in csv.DictReader(table)] == ["True", "True", "False", "False"]
    assert project.planned() == {}


def test_changed_learning_rate_trains_again(project):
    project.config["experiments"]["tiny"]["train"]["learning_rate"] = 1e-4
    assert project.planned() == {"train_segment": 2, **EVALUATED_AGAIN}


def test_a_number_that_yaml_takes_for_text_is_the_same_number(project):
    """In a file and on the command line; 1e-3 is the default of the learning rate."""
    project.config["experiments"]["tiny"]["train"]["learning_rate"] = "5e-3"
    own = project.planned()
    project.config["experiments"]["tiny"]["train"]["learning_rate"] = 0.005
    assert project.planned() == own == {"train_segment": 2, **EVALUATED_AGAIN}
    radius = "experiments={tiny: {model: {radius: 6e-1}}}"
    del project.config["experiments"]["tiny"]["train"]["learning_rate"]
    assert project.planned("--config", radius) == {}


def test_edited_rule_and_script_plan_nothing(project):
    for name in ("workflow/rules/train.smk", "workflow/rules/samples.smk"):
        path = project.path(name)
        path.write_text(path.read_text().replace("script:", "# An edited line.\n    script:"))
    for path in project.path("workflow/scripts").glob("*.py"):
        path.write_text(path.read_text() + "\n# An edited line.\n")
    assert project.planned() == {}


def test_touched_inputs_plan_nothing(project):
    later = time.time() + 60
    touched = [*project.path("results/data/small").glob("*.h5")]
    touched += project.path("results/data/small/raw").rglob("*.csv")
    assert len(touched) > 60
    for path in touched:
        os.utime(path, (later, later))
    assert project.planned() == {}


def test_a_prediction_plans_only_itself(project):
    block = {"experiment": "tiny", "layout": "n1_gpu1", "seed": 0, "source": "small"}
    project.config["predictions"] = {"again": block}
    assert project.planned() == {"predict": 1}
    project.config["predictions"]["again"] = {**block, "source": "/nowhere"}
    refused = project.run("-n", check=False)
    assert refused.returncode != 0
    assert "predictions.again.source: no directory '/nowhere'" in refused.stdout + refused.stderr


def test_changed_raw_data_runs_everything_again(project):
    raw = project.path("results/data/small/raw").rename(project.path("mine"))
    project.config["datasets"]["small"]["source"] = str(raw)
    assert project.planned()["preprocess"] == 1


def test_forced_training_does_not_extract_again(project):
    assert project.planned("train", "-R", "train") == {"train_segment": 2}


def test_stage_targets(project):
    project.path("results/evaluate/tiny/n1_gpu1/seed0/metrics.json").unlink()
    assert project.planned("train") == project.planned("data") == {}
    assert project.planned("evaluate") == {"evaluate_run": 1}


def test_all_six_layouts_are_planned(project):
    names = ["n1_gpu1", "n1_gpu2", "n2_gpu1", "n2_gpu2", "n1_gpu4", "n4_gpu1"]
    project.config["run"]["layouts"] = names
    assert project.planned()["train_segment"] == 2 * (len(names) - 1)


def test_a_measurement_waits_for_the_checkpoint_it_starts_from(tmp_path):
    project = Project(tmp_path / "project")
    tiny = project.config["experiments"]["tiny"]
    start = "results/train/tiny/n1_gpu1/seed{seed}/epoch_2.ckpt"
    tuned = tiny | {"train": tiny["train"] | {"init_from": {"checkpoint": start}}, "seeds": [3]}
    project.config["experiments"]["tuned"] = tuned
    planned = project.planned("results/scaling/tuned/n1_gpu1/strong/run_0.json")
    assert (planned["train_segment"], planned["measure_throughput"]) == (1, 1)


def test_unknown_key_is_refused_with_the_nearest(project):
    project.config["experiments"]["tiny"]["train"]["epoch"] = 3
    done = project.run("-n", check=False)
    assert done.returncode != 0
    assert "experiments.tiny.train: unknown key 'epoch': did you mean 'epochs'?" in (
        done.stdout + done.stderr
    )


def test_a_key_that_only_the_model_knows_is_refused_before_any_job(project):
    project.config["experiments"]["tiny"]["model"]["hiden"] = 3
    done = project.run("-n", check=False)
    assert done.returncode != 0
    told = "config: experiments.tiny.model: unknown key 'hiden': did you mean 'hidden'?"
    assert told in done.stdout + done.stderr


def test_missing_raw_directory_is_one_sentence(project):
    shutil.rmtree(project.path("results"))
    project.config["datasets"]["small"]["source"] = "/nowhere"
    done = project.run("-n", check=False)
    assert done.returncode != 0
    assert "datasets.small.source: no directory '/nowhere'; set it to" in done.stdout + done.stderr


@pytest.mark.slow
def test_braces_and_glob_characters_in_a_path_are_plain_text(project, tmp_path):
    raw = tmp_path / "da{t}a {dataset} ?*[1]"
    shutil.copytree(project.path("results/data/small/raw"), raw)
    project.config["datasets"]["small"]["source"] = str(raw)
    project.config["datasets"]["small"].pop("demo")
    planned = project.planned()
    assert planned["preprocess"] == 1
    assert "simulate_raw" not in planned
    project.run("data")
