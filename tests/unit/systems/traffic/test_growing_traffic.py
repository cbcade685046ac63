"""Raw files of traffic that are added, changed or removed: their parts are made."""

import plans
from growing import (
    Case,
    assert_only_new_parts_are_made,
    begun,
    run_second_pass,
)
from motion_scenes import record, waymo

from millrace.data.division import read_share
from millrace.systems.traffic import scenarios
from millrace.systems.traffic.formats.waymo import message
from millrace.systems.traffic.settings import TokenConfig


class Traffic(Case):
    """Files are added between others, of training too, so that vocabularies change."""

    kind = "scenarios"
    settings = TokenConfig(
        motion=64, road=16, tolerance=0.2, train=0.6, validation=0.2, block=1, splits="official"
    )
    first = ("testing/0", "training/0", "training/2", "training/4", "validation/0", "validation/3")

    def config(self):
        return plans.traffic()

    def dataset(self):
        return {"format": "waymo", "tokens": self.settings.model_dump(mode="json")}

    def begin(self):
        for name in self.first:
            self.write(name)

    def write(self, name, scenes=3, speed=0.0):
        path = self.raw / name.replace("/", "/part.tfrecord-0000")
        path.parent.mkdir(parents=True, exist_ok=True)
        start = 1 + 0.02 * int(name[-1])
        names = [f"{name.replace('/', '')}{i}" for i in range(scenes)]
        made = (waymo(one, start + 0.01 * i, 91, 1, 91) for i, one in enumerate(names))
        path.write_bytes(b"".join(record(moving(one, speed)) for one in made))

    def grow(self):
        self.write("training/1", speed=1.0)
        self.write("validation/1")

    def change(self):
        self.write("training/0", scenes=2)

    def remove(self):
        (self.raw / "validation/part.tfrecord-00003").unlink()

    def passes(self):
        def sample(path, share):
            scenarios.sample_motion(self.raw, path, self.settings, share, raw="waymo")

        return [("motion", sample)]

    def gather(self, files):
        plan, vocabulary = self.plan(record=False), self.data / "vocabulary.h5"
        motion = self.files(plan, "motion")
        scenarios.gather_vocabulary(motion, self.raw, vocabulary, self.settings, raw="waymo")
        for path in files:  # all are planned, as the workflow cannot know that it is the same
            path.unlink(missing_ok=True)
            number = int(path.stem.rpartition("_")[2])
            share = read_share(*plan.data.share("set", "scenarios", number))
            scenarios.tokenise_part(self.raw, vocabulary, path, self.settings, share, raw="waymo")
        scenarios.gather_scenarios(
            files, self.raw, vocabulary, self.data / "scenarios.h5", self.settings, raw="waymo"
        )

    def whole(self, folder):
        vocabulary = folder / "vocabulary.h5"
        scenarios.build_vocabulary(self.raw, vocabulary, self.settings, raw="waymo")
        scenarios.tokenise(
            self.raw, vocabulary, folder / "scenarios.h5", self.settings, raw="waymo"
        )


def moving(scene, speed):
    """A scene in which the agent drives (m/s)."""
    scenario = message("Scenario")
    scenario.ParseFromString(scene)
    for step, state in enumerate(scenario.tracks[0].states):
        state.center_x += 0.1 * step * speed
        state.velocity_x = speed
    return scenario.SerializeToString()


def test_only_parts_of_new_changed_and_removed_files_are_made(tmp_path):
    assert_only_new_parts_are_made(begun(Traffic, tmp_path))


def test_scenarios_of_the_same_vocabulary_are_kept(tmp_path, capsys):
    case = begun(Traffic, tmp_path)
    case.write("validation/4")
    made, same = run_second_pass(case, "scenarios")
    assert made == [3]
    assert same == {f"scenarios_{n}.h5": True for n in range(3)}
    assert "kept, vocabulary.h5 holds what it held before" in capsys.readouterr().out
    case.assert_as_a_whole()
    case.write("training/5", speed=2.0)
    _, same = run_second_pass(case, "scenarios")
    assert not any(same.values())
    assert "vocabulary.h5 holds something else than before" in capsys.readouterr().out
    case.assert_as_a_whole()
