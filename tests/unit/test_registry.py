"""Systems are known by name, and imported when they are asked for; others come from outside."""

import subprocess
import sys

import pytest

from millrace.errors import ConfigError
from millrace.systems import registry
from millrace.systems.base import Model, System, resolve

PLUGIN = """
from millrace.systems.base import Model, System

SYSTEM = System("{name}", models=(Model("{model}", "patches", "{name}_model:SPEC"),))
"""


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr(registry, "loaded_plugins", {})
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture
def plugin(tmp_path):
    """Write a plug-in and return its path; files of a test have names of their own."""

    def write(name, text=None, model=None):
        path = tmp_path / f"{name}.py"
        path.write_text(text or PLUGIN.format(name=name, model=model or name))
        return str(path)

    return write


def test_what_is_asked_for_is_imported():
    assert resolve("math:sqrt")(4.0) == 2.0
    assert resolve(len) is len
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        resolve("millrace.no_such_module:thing")


def test_an_unknown_name_gives_the_nearest():
    with pytest.raises(ConfigError, match="no model named 'ginos'; did you mean 'gino'"):
        registry.get_model("ginos")
    with pytest.raises(ConfigError, match="no kind of samples named 'patch'; did you mean"):
        registry.get_kind("patch")


def test_a_file_from_outside_brings_a_model(plugin, tmp_path):
    path = plugin("outside_a")
    (tmp_path / "outside_a_model.py").write_text("SPEC = 'what it is'\n")
    assert registry.load_plugins([path]) == [path]
    assert registry.get_model("outside_a") == "what it is"
    assert registry.kind_of("outside_a").name == "patches"
    assert registry.load_plugins([path]) == [path], "once more is no error"


def test_a_relative_file_is_found_from_other_folders(plugin, tmp_path, monkeypatch):
    path = plugin("outside_b")
    monkeypatch.chdir(tmp_path)
    assert registry.load_plugins(["outside_b.py"]) == [path]


def test_a_module_on_the_path_brings_a_model(plugin, tmp_path, monkeypatch):
    plugin("outside_c")
    monkeypatch.syspath_prepend(tmp_path)
    assert registry.load_plugins(["outside_c"]) == ["outside_c"]
    assert "outside_c" in registry.models()


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("bad_syntax", "x = 1\ny = (\n", r"bad_syntax\.py:2: '\(' was never closed"),
        (
            "bad_import",
            "\nimport no_such_thing\n",
            r"bad_import\.py:2: ModuleNotFoundError: No mod",
        ),
        ("bad_value", "def f():\n    return 1 / 0\n\nf()\n", r"bad_value\.py:2: ZeroDivisionError"),
        ("bad_nothing", "x = 1\n", "bad_nothing.py: expected a .*System under the name SYSTEM"),
        ("json", "x = 1\n", "there is another module 'json', .*; rename the file"),
    ],
)
def test_errors_of_a_plugin_name_file_and_line(plugin, name, text, told):
    with pytest.raises(ConfigError, match=told):
        registry.load_plugins([plugin(name, text)])


def test_names_that_are_taken_are_refused(plugin):
    with pytest.raises(
        ConfigError, match="the name 'gino' of its models is taken by the system 'g"
    ):
        registry.load_plugins([plugin("outside_d", model="gino")])
    with pytest.raises(ConfigError, match=r"no file .*nowhere\.py; give its path"):
        registry.load_plugins(["nowhere.py"])
    assert registry.load_plugins([plugin("outside_e")])
    with pytest.raises(ConfigError, match="the name 'outside_e' of its models is taken"):
        registry.load_plugins([plugin("outside_f", model="outside_e")])


def test_installed_packages_bring_systems(monkeypatch):
    class Point:
        name, value = "ours", "ours.system:SYSTEM"

        def __init__(self, load):
            self.load = load

    system = System("ours", models=(Model("ours", "patches", None),))
    monkeypatch.setattr(registry, "entry_points", lambda group: [Point(lambda: system)])
    registry.installed_systems.cache_clear()
    try:
        assert registry.systems()["ours"] is system
        monkeypatch.setattr(registry, "entry_points", lambda group: [Point(lambda: 1 / 0)])
        registry.installed_systems.cache_clear()
        with pytest.raises(ConfigError, match=r"entry point ours = ours.system:SYSTEM: .*ZeroDiv"):
            registry.systems()
    finally:
        monkeypatch.undo()
        registry.installed_systems.cache_clear()


def test_a_rank_starts_without_what_other_models_and_divided_ones_need():
    heavy = ("neuralop", "diffusers", "sklearn", "torch.distributed.tensor", "torch._dynamo")
    program = (
        "import sys, millrace.launch.train, millrace.evaluation.run, millrace.systems.traffic.smart.spec\n"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
