"""Facts of clusters: where layouts go, what they get there, and what is refused."""

import json
import re
from pathlib import Path

import pytest
import yaml

from millrace.cluster import LAYOUTS, RESOURCES, Cluster, cluster_of_job
from millrace.cluster.command import main
from millrace.cluster.facts import PROFILES
from millrace.cluster.placement import Needs, NodeType
from millrace.config import schema_of
from millrace.errors import ConfigError
from millrace.layout import Layout

NODES = {"name": "a", "cores": 32, "memory_gb": 100, "count": 4, "gpus": 2, "partition": "gpu"}
FACTS = {
    "name": "test",
    "scheduler": "slurm",
    "usable_memory": 0.5,
    "node_types": [
        NODES,
        {**NODES, "name": "b", "gpus": 4, "count": 1, "gpu_memory_gb": 80, "max_hours": 2},
        {"name": "c", "cores": 8, "memory_gb": 60},
        {**NODES, "name": "d", "gpus": 8, "enabled": False},
    ],
    "jobs": {
        "cpu": {"cores": 4, "memory_gb": 10},
        "gpu": {"cores": 12, "memory_gb": 15, "hours": 5},
        "short": {"hours": 0.5},
    },
}


@pytest.fixture(autouse=True)
def _no_choices(monkeypatch):
    for name in ("MILLRACE_ACCOUNT", "MILLRACE_QOS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def write(tmp_path):
    """Facts with changes, as a cluster."""

    def written(**changes) -> Cluster:
        (tmp_path / "cluster.yaml").write_text(yaml.safe_dump({**FACTS, **changes}))
        return Cluster.read(tmp_path)

    return written


def place(cluster, layout, rule="train_segment", memory=1):
    return cluster.place(layout and Layout.parse(layout), rule, memory)


def test_the_first_type_with_room_is_taken(write):
    cluster = write()
    types = {name: place(cluster, name).node_type.name for name in (*LAYOUTS, "n1_gpu3")}
    assert types.pop("n1_gpu4") == types.pop("n1_gpu3") == "b"
    assert set(types.values()) == {"a"}
    assert place(cluster, None).node_type.name == "c"


def test_cores_and_memory_are_counted_by_gpu_within_the_node(write):
    one, two = place(write(), "n1_gpu1"), place(write(), "n1_gpu2")
    assert (one.cpus_per_node, two.cpus_per_node) == (12, 24)
    assert (one.memory_mb, two.memory_mb) == (15 * 1024, 30 * 1024)
    four = place(write(), "n1_gpu4")
    assert four.cpus_per_node == 32  # eight cores for each of four GPUs
    assert four.memory_mb == 50 * 1024  # half of 100 GB, not 60


@pytest.mark.parametrize("given", [["mem_mb=1", "site='old'"], {"site": "old"}])
def test_a_copied_profile_that_names_its_old_folder_is_refused(write, tmp_path, given, capsys):
    write()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"default-resources": given}))
    assert main(["check", f"{tmp_path}/"]) != 0
    said = " ".join(capsys.readouterr().err.split())
    assert "config.yaml: default-resources: site is 'old'" in said
    assert f"write site='{tmp_path.name}'" in said
    own = {"default-resources": [f"site='{tmp_path.name}'"]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(own))
    assert main(["check", f"{tmp_path}/"]) == 0


def test_memory_grows_and_time_does_not(write):
    tries = [place(write(), "n1_gpu1", memory=n) for n in (1, 2, 9)]
    assert [one.memory_mb // 1024 for one in tries] == [15, 30, 50]
    assert [one.minutes for one in tries] == [300, 300, 300]


def test_time_stays_below_every_limit(write):
    assert place(write(), "n1_gpu4").minutes == 120
    assert place(write(), "n1_gpu2", "short").minutes == 30
    limited = write(qos="brief", qos_hours={"brief": 1, "long": 99})
    assert place(limited, "n1_gpu4").minutes == place(limited, "n1_gpu2").minutes == 60


def test_quality_of_service_is_chosen_by_the_environment(write, monkeypatch):
    monkeypatch.setenv("MILLRACE_QOS", "brief")
    cluster = write(qos="long", qos_hours={"brief": 1, "long": 99})
    assert place(cluster, "n1_gpu2").resources()["qos"] == "brief"
    monkeypatch.setenv("MILLRACE_QOS", "brif")
    with pytest.raises(ConfigError, match=r"no quality of service 'brif'.*did you mean 'brief'"):
        write(qos="long", qos_hours={"brief": 1, "long": 99})


def test_account_is_taken_from_the_environment_or_the_file(write, monkeypatch):
    cluster = write(account_required=True)
    with pytest.raises(ConfigError, match="export MILLRACE_ACCOUNT"):
        cluster.require_account()
    write(account_required=True, account="file").require_account()
    assert place(write(account="file"), "n1_gpu1").resources()["slurm_account"] == "file"
    monkeypatch.setenv("MILLRACE_ACCOUNT", "mine")
    assert place(write(account="file"), "n1_gpu1").resources()["slurm_account"] == "mine"
    write(account_required=True).require_account()


def test_a_whole_node_is_asked_for_only_by_jobs_that_take_all_its_gpus(write):
    types = [{**NODES, "exclusive": True}]
    shared, whole = (place(write(node_types=types), f"n1_gpu{n}") for n in (1, 2))
    assert "slurm_extra" not in shared.resources()
    assert whole.resources()["slurm_extra"] == "--exclusive"
    assert whole.memory_mb == 50 * 1024


def test_rules_without_a_layout_take_gpus_only_if_they_or_the_site_ask(write):
    assert "gres" not in place(write(), None, "other").resources()
    assert place(write(gpu_required=True), None, "other").resources()["gres"] == "gpu:1"
    jobs = {**FACTS["jobs"], "scoring": {"gpus": 2}}
    scoring = place(write(jobs=jobs), None, "scoring")
    assert (scoring.resources()["gres"], scoring.cpus_per_node) == ("gpu:2", 24)  # class gpu


def test_a_rule_may_name_its_node_types(write):
    jobs = {"train_segment": {"node_types": ["b"]}}
    assert place(write(jobs=jobs), "n1_gpu1").node_type.name == "b"
    with pytest.raises(ConfigError, match="no node type 'e'"):
        write(jobs={"train_segment": {"node_types": ["e"]}})


def test_gpu_memory_decides(write):
    jobs = {"train_segment": {"gpu_memory_gb": 60}}
    assert place(write(jobs=jobs), "n1_gpu1").node_type.name == "b"
    with pytest.raises(ConfigError, match=r"60 GB per GPU.*nearest layout that fits is n1_gpu2"):
        place(write(jobs=jobs), "n2_gpu1")


@pytest.mark.parametrize(
    ("layout", "nearest"), [("n1_gpu8", "n4_gpu2"), ("n9_gpu1", "n4_gpu2"), ("n2_gpu4", "n4_gpu2")]
)
def test_a_layout_that_fits_nowhere_is_refused_with_the_nearest(write, layout, nearest):
    message = f"layout {layout} does not fit on test, which has a (4 x 2), b (1 x 4): the nearest "
    with pytest.raises(ConfigError) as refused:
        place(write(), layout)
    assert str(refused.value) == f"{message}layout that fits is {nearest}"


def test_a_rule_that_fits_nowhere_is_refused(write):
    with pytest.raises(ConfigError, match=r"jobs.cpu: no node has 64 cores, 8 GB and 0 GPUs"):
        place(write(jobs={"cpu": {"cores": 64}}), None, "cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"nodetypes": []},
            "unknown key 'nodetypes': did you mean 'node_types'?",
        ),
        ({"scheduler": "lsf"}, "scheduler: expected one of slurm, pbs, got 'lsf'"),
        (
            {"node_types": [{**NODES, "cors": 3}]},
            "node_types[0]: unknown key 'cors': did you mean 'cores'?",
        ),
        ({"node_types": [NODES, NODES]}, "two are named 'a'"),
        ({"environment": {"NCCL_IB_DISABLE": 1}}, "turns the fast network off"),
        ({"jobs": {"cpu": {"hours": 0}}}, "jobs.cpu.hours"),
    ],
)
def test_mistakes_are_one_sentence_with_the_file(write, tmp_path, changes, message):
    with pytest.raises(ConfigError) as refused:
        write(**changes)
    assert str(refused.value).startswith(f"{tmp_path / 'cluster.yaml'}: ")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_damaged_and_missing_files(tmp_path):
    (tmp_path / "cluster.yaml").write_text("name: [")
    with pytest.raises(ConfigError, match="not YAML"):
        Cluster.read(tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'gilbreth'"):
        Cluster.read("gilbret")


def test_jobs_of_unknown_rules_are_refused(write):
    cluster = write(jobs={"train_segmnt": {}})
    with pytest.raises(ConfigError, match="no rule 'train_segmnt'; did you mean 'train_segment'"):
        cluster.check_rules(["train_segment"])
    write().check_rules(["short"])


def test_a_job_finds_its_cluster_by_path(write):
    directory = write(environment={"NCCL_NET_GDR_LEVEL": 5}, modules=["cuda/12"]).directory
    cluster = cluster_of_job({"site": str(directory)})
    assert cluster.environment == {"NCCL_NET_GDR_LEVEL": "5"}
    assert cluster.modules == ("cuda/12",)
    assert cluster_of_job({"mem_mb": 4}) is None


@pytest.mark.parametrize("name", ["gilbreth", "levante", "katana"])
def test_every_resource_is_known_to_the_workflow(name):
    cluster = Cluster.read(name)
    placements = [place(cluster, n) for n in ("n1_gpu1", "n1_gpu4")] + [place(cluster, None)]
    if not cluster.max_nodes:
        placements.append(place(cluster, "n2_gpu2"))
    for one in placements:
        assert set(one.resources()) <= set(RESOURCES)


def test_four_gpus_of_gilbreth_are_those_with_nvlink():
    placed = place(Cluster.read("gilbreth"), "n1_gpu4")
    resources = placed.resources()
    assert resources["slurm_partition"] == "a100-40gb"
    assert resources["constraint"] == "nvlink"
    assert resources["cpus_per_task"] <= 12 * 4
    assert place(Cluster.read("gilbreth"), "n1_gpu2").resources()["slurm_partition"] == "a100-80gb"


def test_standby_of_gilbreth_is_four_hours(monkeypatch):
    assert place(Cluster.read("gilbreth"), "n1_gpu1").minutes > 240
    monkeypatch.setenv("MILLRACE_QOS", "standby")
    resources = place(Cluster.read("gilbreth"), "n1_gpu1").resources()
    assert (resources["qos"], resources["runtime"]) == ("standby", 240)


def test_several_nodes_of_katana_are_refused_with_the_reason():
    with pytest.raises(ConfigError) as refused:
        place(Cluster.read("katana"), "n4_gpu1")
    assert "runs jobs of one node only: the nearest layout that fits is n1_gpu4" in str(
        refused.value
    )


def test_commands(write, capsys):
    directory = str(write().directory)
    assert main(["show"]) == 0
    assert "a100-40gb nvlink" in capsys.readouterr().out
    assert main(["show", directory]) == 0
    assert "not enabled" in capsys.readouterr().out
    assert main(["check", directory]) == 0
    assert "n4_gpu1" in capsys.readouterr().out
    assert main(["place", directory, "n2_gpu2"]) == 0
    assert "--nodes=2 --ntasks=2" in capsys.readouterr().out
    assert main(["place", "katana", "-", "preprocess"]) == 0
    assert "qsub -N preprocess" in capsys.readouterr().out
    assert main(["place", "katana", "-", "preprocess", "--json"]) == 0
    asked = json.loads(capsys.readouterr().out)
    assert asked["command"][:3] == ["qsub", "-N", "preprocess"]
    assert asked["resources"]["ncpus"] == 4
    assert main(["show", "--json"]) == 0
    clusters = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert clusters.keys() == {"gilbreth", "katana", "levante"}
    assert clusters["katana"]["layouts"]["n4_gpu1"] is None
    assert main(["show", directory, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["file"] == f"{directory}/cluster.yaml"
    assert main(["place", "katana", "n4_gpu1"]) == 2
    assert capsys.readouterr().err.startswith("error: layout n4_gpu1")
    Path(directory, "cluster.yaml").write_text("name: x")
    assert main(["check", directory]) == 2


def test_every_key_of_the_file_is_described():
    text = (PROFILES / "README.md").read_text().split("## Add a cluster")[1]
    described = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text, flags=re.M)
    expected = []
    for settings in (Cluster, NodeType, Needs):
        schema = schema_of(settings)
        for key in schema["properties"]:
            if key != "directory":
                expected.append((key, key in schema.get("required", [])))
    assert sorted((key, said == "required") for key, said in described) == sorted(expected)


def test_the_table_of_the_site_is_that_of_show(capsys):
    main(["show"])
    rows = [re.split(r"  +", line.strip()) for line in capsys.readouterr().out.splitlines()]
    page = (PROFILES.parent / "docs/howto/cluster.md").read_text()
    order = [rows[0].index(name) for name in ("layout", "gilbreth", "levante", "katana")]
    for row in rows[1:]:
        layout, *where = (row[i] for i in order)
        assert f"| `{layout}` | {' | '.join(where)} |" in page
