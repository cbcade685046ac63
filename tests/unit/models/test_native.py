"""Files in C: compiled once for all processes, and left out where that cannot be."""

import logging
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from millrace.models import native

CODE = "int answer(void) { return 42; }\n"


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(native.SWITCH, raising=False)
    path = tmp_path / "answers.c"
    path.write_text(CODE)
    yield path
    native.has.cache_clear()
    native.library.cache_clear()


def test_processes_share_what_one_has_compiled(source, compiler, tmp_path, monkeypatch):
    assert native.has(source)
    assert native.library(source).answer() == 42
    (made,) = (tmp_path / "cache/millrace").iterdir()
    before = made.stat()
    told = "import sys; from pathlib import Path; from millrace.models import native; "
    told += "print(native.library(Path(sys.argv[1])).answer())"
    done = subprocess.run(
        [sys.executable, "-c", told, source], capture_output=True, text=True, check=True
    )
    assert done.stdout == "42\n"
    assert made.stat() == before
    source.write_text(CODE.replace("42", "43"))
    native.library.cache_clear()
    assert native.library(source).answer() == 43
    assert len([*made.parent.iterdir()]) == 2


def test_a_header_that_changed_is_compiled_anew(source, compiler, tmp_path, monkeypatch):
    monkeypatch.setattr(native, "HEADERS", tmp_path)
    source.write_text('#include "one.h"\nint one(void) { return ONE; }\n')
    for value in (1, 2):
        (tmp_path / "one.h").write_text(f"#define ONE {value}\n")
        native.library.cache_clear()
        assert native.library(source).one() == value


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("switch", None),
        ("compiler", "no C compiler was found"),
        ("code", "error"),
        ("symbol", "undefined symbol"),
    ],
)
def test_kernels_that_cannot_be_had_are_left_to_pytorch(
    source, compiler, monkeypatch, caplog, damage, told
):
    if damage == "switch":
        monkeypatch.setenv(native.SWITCH, "0")
    elif damage == "compiler":
        monkeypatch.setenv("PATH", "")
        monkeypatch.delenv("CC", raising=False)
    elif damage == "code":
        source.write_text("int answer(void) { return 42 }\n")
    else:
        source.write_text("int other(void);\nint answer(void) { return other(); }\n")
        monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "-Wl,-z,now"))
    with caplog.at_level(logging.INFO, logger="millrace"):
        assert not native.has(source)
        assert not native.has(source)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (told is not None)
    assert all(one.startswith("answers.c: left to PyTorch") and told in one for one in said)


def test_a_home_that_cannot_be_written_is_done_without(source, compiler, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert native.library(source).answer() == 42


def test_kernels_take_plain_numbers_on_a_cpu_that_nobody_looks_at(source, compiler):
    source.write_text("int vector(void) { return 3; }\n")
    kernels = native.Kernels(source)
    x = torch.ones(4, 3)
    assert kernels.suit(x, torch.nn.Parameter(x), channels=6)
    assert not kernels.suit(x, channels=4)
    for other in (x.double(), x.t(), x.to("meta"), x.bfloat16()):
        assert not kernels.suit(x, other)
    with FlopCounterMode(display=False):
        assert not kernels.suit(x)
    with torch.autocast("cpu"):
        assert not kernels.suit(x)
