"""Names are known without an import; what has a name is imported alone."""

import subprocess
import sys

import pytest

from millrace.imported import Imported

PLACES = Imported({"square root": "math:sqrt", "lost": "millrace.no_such_module:thing"})


def test_what_is_asked_for_is_imported():
    assert PLACES["square root"](4.0) == 2.0
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        PLACES["lost"]
    with pytest.raises(KeyError):
        PLACES["unknown"]


def test_names_are_known_without_an_import():
    assert list(PLACES) == ["square root", "lost"]
    assert len(PLACES) == 2
    assert "lost" in PLACES
    assert "unknown" not in PLACES


def test_a_rank_starts_without_what_other_models_need():
    program = (
        "import sys, millrace.train, millrace.evaluate, millrace.models.smart.spec\n"
        "print([m for m in ('neuralop', 'diffusers', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
