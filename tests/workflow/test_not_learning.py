"""A run that does not learn is named in its log, in the table and in the report."""

import base64
import re

import pytest

RUN = "tiny/n1_gpu1/seed0"


@pytest.mark.nightly
def test_a_dead_run_is_named_in_log_table_and_report(project):
    train = {"epochs": 3, "global_batch": 1, "learning_rate": 1e-12}  # nothing moves in 120 steps
    project.config["experiments"]["tiny"]["train"] = train
    project.run()
    log = project.path(f"logs/train_segment/{RUN}/epoch_3.log").read_text()
    assert "WARNING: tiny n1_gpu1 seed 0 does not learn: the loss does not move" in log
    assert "does not learn" in project.path(f"logs/evaluate_run/{RUN}.log").read_text()
    table = project.path("results/report/skill.html").read_text()
    assert "tiny, n1_gpu1, seed 0: does not learn: the loss does not move" in table
    embedded = re.findall(r"data:text/html[^,]*;base64,([A-Za-z0-9+/=]+)", project.report())
    assert any(b"does not learn: seed 0</span>" in base64.b64decode(one) for one in embedded)
