"""Run hashes: what they depend on, and how a difference is reported."""

import copy
import json

import pytest

from millrace.training.run_hash import differences, digest, siblings

RUN = {
    "model": {"name": "gino", "modes": [4, 4, 2], "radius": 0.1},
    "train": {"global_batch": 8, "schedule": {"kind": "cosine"}, "clip_norm": None},
    "seed": 0,
}


def test_a_digest_depends_on_values_not_on_order() -> None:
    shuffled = {key: RUN[key] for key in reversed(RUN)}
    shuffled["model"] = dict(reversed(RUN["model"].items())) | {"modes": (4, 4, 2)}
    assert digest(RUN) == digest(shuffled)
    assert len(digest(RUN)) == 16
    # Names of directories: a new version must find the runs of the old one.
    assert digest({"a": [1, 2.5, None, "ü"], "b": {"c": True}}) == "96ea468c2a8febce"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("seed",), 1, "seed: 0 -> 1"),
        (("model", "modes"), [4, 4, 3], "model.modes: [4, 4, 2] -> [4, 4, 3]"),
        (("train", "schedule", "kind"), "wsd", "train.schedule.kind: cosine -> wsd"),
        (("train", "clip_norm"), 1.0, "train.clip_norm: None -> 1.0"),
        (("train", "extra"), None, "train.extra: nothing -> None"),
    ],
)
def test_every_change_has_another_digest_and_is_named(path, value, message) -> None:
    changed = copy.deepcopy(RUN)
    block = changed
    for key in path[:-1]:
        block = block[key]
    block[path[-1]] = value
    assert digest(changed) != digest(RUN)
    assert differences(RUN, changed) == [message]
    assert differences(changed, changed) == []


def test_a_key_that_went_is_named() -> None:
    assert differences({"a": {"b": 1}, "c": 2}, {"c": 2}) == ["a.b: 1 -> nothing"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_cannot_hold_has_no_digest(value) -> None:
    with pytest.raises(ValueError, match="JSON"):
        digest({"a": value})


def test_siblings_are_the_other_readable_runs(tmp_path) -> None:
    runs = [("own", "{}"), ("torn", '{"a'), ("other", json.dumps(RUN))]
    runs += [(digest(run), json.dumps(run)) for run in (RUN, {"x": 1})]
    for name, text in runs:
        (tmp_path / name).mkdir()
        (tmp_path / name / "identity.json").write_text(text)
    (tmp_path / "empty").mkdir()
    assert sorted(siblings(tmp_path, "own"), key=len) == [{"x": 1}, RUN]
    assert list(siblings(tmp_path / "nowhere", "own")) == []
