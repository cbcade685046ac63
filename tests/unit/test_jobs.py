"""Logs, sentences and exit codes of the workflow's jobs."""

import ast
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from millrace import job_log as jobs


def run(tmp_path, body: str) -> tuple[subprocess.CompletedProcess, str]:
    code = """
        import os, subprocess, sys
        from millrace.errors import DataError
        from types import SimpleNamespace
        from millrace.job_log import job
        print("before")
        with job(SimpleNamespace(log=[{log!r}], config={{}})) as progress:
        {body}
        print("after", flush=True)
        print("after, too", file=sys.stderr)
    """
    text = textwrap.dedent(code).format(
        log=str(tmp_path / "job.log"), body=textwrap.indent(textwrap.dedent(body), "    ")
    )
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "-c", text], env=buffered, capture_output=True, text=True, check=False
    )
    return done, (tmp_path / "job.log").read_text()


def test_output_goes_to_the_log_also_that_of_children(tmp_path) -> None:
    (tmp_path / "job.log").write_text("of an earlier try")
    done, log = run(
        tmp_path,
        """
        print("out")
        sys.stdout.flush()
        print("err", file=sys.stderr)
        subprocess.run(["sh", "-c", "echo child; echo child err >&2"])
        os.write(1, b"raw" + bytes([10]))
        print("unflushed", end="")
        """,
    )
    assert log == "out\nerr\nchild\nchild err\nraw\nunflushed"
    assert (done.returncode, done.stdout, done.stderr) == (0, "before\nafter\n", "after, too\n")


def test_a_user_error_is_one_sentence(tmp_path) -> None:
    done, log = run(tmp_path, "print('out'); raise DataError('a.csv:3:1: expected a number')")
    assert log == "out\nerror: a.csv:3:1: expected a number\n"
    assert (done.returncode, done.stdout, done.stderr) == (65, "before\n", "")


@pytest.mark.parametrize(
    ("body", "sentence", "code"),
    [
        ("open('/nowhere/a.csv')", "/nowhere/a.csv: the system refuses it (No such file", 65),
        (
            "raise OSError(28, 'No space left on device')",
            "a file: the system refuses it (No space",
            74,
        ),
        (
            "raise OSError(116, 'Stale file handle', 'b.nc')",
            "b.nc: the system refuses it (Stale",
            65,
        ),
        ("raise MemoryError", "out of memory: ask for more", 1),
    ],
)
def test_what_the_system_refuses_is_one_sentence(tmp_path, body, sentence, code) -> None:
    done, log = run(tmp_path, body)
    assert log.startswith(f"error: {sentence}")
    assert log.count("\n") == 1
    assert (done.returncode, done.stdout, done.stderr) == (code, "before\n", "")


def test_where_the_log_cannot_be_written_the_console_says_why():
    for log, code in (("/dev/full", 74), ("/nowhere/job.log", 65)):
        text = f"""
            from types import SimpleNamespace
            from millrace.job_log import job
            with job(SimpleNamespace(log=["{log}"], config={{}})):
                print("to the log", flush=True)
            """
        command = [sys.executable, "-c", textwrap.dedent(text)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == code
        assert "the system refuses it" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr


def test_any_other_error_is_called_a_mistake_of_ours_after_its_traceback(tmp_path) -> None:
    done, log = run(tmp_path, "print('out'); {}['key']")
    assert log.startswith("out\nTraceback (most recent call last)")
    *_, last = log.splitlines()
    assert last.startswith("error: KeyError: 'key'. This is a mistake in Millrace or in a plug-in")
    assert (done.returncode, done.stdout, done.stderr) == (1, "before\n", "")


@pytest.mark.parametrize("code", [0, 75])
def test_an_exit_code_passes(tmp_path, code) -> None:
    done, log = run(tmp_path, f"sys.exit({code})")
    assert (done.returncode, done.stdout, log) == (code, "before\n", "")


def test_progress_is_a_line_now_and_then(monkeypatch, capsys) -> None:
    now = [100.0]
    monkeypatch.setattr(jobs.time, "monotonic", lambda: now[0])
    report = jobs.progress_in_lines("files")
    for done in range(1, 25):
        now[0] += 1.0
        report(done, 24)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ["7/24 files, 1.0/s, 17 s left", "13/24 files, 1.0/s, 11 s left"]
    assert lines[-1] == "24/24 files, 1.0/s, 0 s left"
    assert len(lines) == 5
    jobs.progress_in_lines("files")(0, 0)
    assert capsys.readouterr().out.startswith("0/0 files")


SCRIPTS = sorted((Path(__file__).parents[2] / "workflow/scripts").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_what_takes_long_is_imported_once_the_job_has_begun(script) -> None:
    """Until then no death of Snakemake is noticed, and the log does not say why a job failed."""
    body = ast.parse(script.read_text()).body
    modules = [node.module for node in body if isinstance(node, ast.ImportFrom)]
    assert [name for name in modules if name.startswith("millrace")] == ["millrace.job_log"]
