"""Files in C: compiled once for all processes, and left out where that cannot be."""

import logging
import shutil
import subprocess
import sys
from pathlib import Path

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
    before = made.stat().st_mtime_ns
    told = "import sys; from pathlib import Path; from millrace.models import native; "
    told += "print(native.library(Path(sys.argv[1])).answer())"
    done = subprocess.run(
        [sys.executable, "-c", told, source], capture_output=True, text=True, check=True
    )
    assert done.stdout == "42\n"
    assert made.stat().st_mtime_ns == before
    source.write_text(CODE.replace("42", "43"))
    native.library.cache_clear()
    assert native.library(source).answer() == 43
    assert len([*made.parent.iterdir()]) == 2
    made.unlink()  # it is still in memory
    made.write_bytes(b"damaged")
    source.write_text(CODE)
    native.library.cache_clear()
    assert native.library(source).answer() == 42


@pytest.mark.parametrize("other", ["/bin/false", "/no/such/compiler", ""])
def test_another_compiler_is_taken_where_one_fails(source, compiler, monkeypatch, other):
    monkeypatch.setenv("CC", other)
    assert native.library(source).answer() == 42


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


def test_what_a_compiler_writes_is_not_taken_for_text(source, compiler, tmp_path, monkeypatch):
    script = tmp_path / "compiler"
    script.write_text(
        "#!/bin/sh\n"
        r"""if [ "$1" = --version ]; then printf '\351'; else printf '\351\nan error\n' >&2; sleep 20; fi"""
    )
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    monkeypatch.setattr(shutil, "which", lambda name: name if name == str(script) else None)
    monkeypatch.setattr(native, "LONGEST_S", 1)
    assert not native.has(source)


def test_processes_of_one_number_write_files_of_their_own(source, compiler, monkeypatch):
    copy, written = shutil.copy, []
    monkeypatch.setattr(
        native.shutil, "copy", lambda made, to: (written.append(to), copy(made, to))
    )
    for code in (CODE, CODE.replace("42", "43")):
        source.write_text(code)
        native.library.cache_clear()
        native.library(source)
    assert len({path.suffix for path in written}) == 2


def test_the_threads_are_those_of_pytorch(tmp_path, monkeypatch):
    own = Path(torch.__file__).parent / "lib/libgomp.so.1"
    maps = tmp_path / "maps"
    lines = [
        "7f00 r-xp 00000000 fe:01 42    /a folder/other.libs/libgomp-e985bcbb.so.1.0.0",
        "7f10 r-xp 00000000 fe:01 43    /a folder/libompx/other.so",
    ]
    monkeypatch.setattr(native, "MAPS", maps)
    maps.write_text("\n".join([*lines, f"7f20 r-xp 00000000 fe:01 44    {own}", ""]))
    assert native.openmp() == (str(own),)
    maps.write_text("\n".join(lines))
    assert native.openmp() == ("/a folder/other.libs/libgomp-e985bcbb.so.1.0.0",)
    maps.unlink()
    assert native.openmp() == ()


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
