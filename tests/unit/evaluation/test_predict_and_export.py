"""The script of the documentation predicts and exports with every model, from what lies beside it alone."""

import re
import shutil
import subprocess
import sys

import pytest
import torch
import xarray as xr
from plans import ROOT
from tiers import nightly_for

from millrace.checking.subjects import find_subjects
from millrace.data.recipe import recipe_of

FORECASTS = {
    "gino": "head",
    "gfno": "head",
    "downscaler": "tas",
    "aurora": "t2m",
    "smart": "x",
}
MOST_LINES = 20


@pytest.mark.parametrize(
    "model",
    nightly_for(FORECASTS, lambda one: one[0] != "gfno"),  # the others are traced for longer
)
@pytest.mark.slow
def test_checkpoints_alone_predict_and_export(model, tmp_path):
    page = (ROOT / "docs/howto/predict.md").read_text()
    script = re.search(r"```python\n(import sys\n.*?)```", page, re.DOTALL)[1]
    assert len(script.splitlines()) < MOST_LINES
    (subject,) = find_subjects([model])
    case, checkpoint = subject.case, tmp_path / "epoch_1.ckpt"
    trainer = case.trainer()
    recipe = recipe_of(case.kind.name, case.definition, trainer.dataset)
    torch.save({**trainer.state(), "recipe": recipe}, checkpoint)
    (raw,) = case.directory.glob("*_raw")
    shutil.move(raw, tmp_path / "raw")
    shutil.rmtree(case.directory)  # nothing of the training is left
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "script.py", checkpoint.name, "raw"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{model}.nc" in done.stdout
    with xr.open_dataset(tmp_path / f"{model}.nc") as forecast:
        made = forecast[FORECASTS[model]]
        assert made.sizes[made.dims[0]] == 2
        assert made.notnull().any()
        assert forecast.attrs["checkpoint"] == checkpoint.name
        assert '"limit":2' in forecast.attrs["options"]
    torch.export.load(tmp_path / f"{model}.pt2")
