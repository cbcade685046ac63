"""One file or step of a finished project is damaged, then something that reads it is run.

Right is a sentence that names what is damaged, or an output equal to that without damage.
"""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

from cases import OTHER, REFUSED, RESTORED, SILENT, TRACEBACK, UNEQUAL, Outcome, Single, chance
from projects import ACTIONS, copy_for, shown
from warm import HUNG, TRACE, forked

from millrace.errors import ExitCode

KIND = "damages"
CODES = {ExitCode.USER, ExitCode.DATA, ExitCode.NO_SPACE}
BUG = "a mistake in Millrace"


# --- damages -------------------------------------------------------------------------------------


def _flip(path, random, others):
    content = bytearray(path.read_bytes())
    bit = random.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def _truncate(path, random, others):
    os.truncate(path, random.randrange(path.stat().st_size))


def _zero(path, random, others):
    content = bytearray(path.read_bytes())
    start, length = random.randrange(len(content)), random.choice([16, 512, 4096])
    content[start : start + length] = bytes(len(content[start : start + length]))
    path.write_bytes(content)


def _append(path, random, others):
    with path.open("ab") as file:
        file.write(random.randbytes(random.randint(1, 600)))


def _empty(path, random, others):
    path.write_bytes(b"")


def _exchange(path, random, others):
    other = random.choice([one for one in others if one != path and one.is_file()])
    path.write_bytes(other.read_bytes())


def _remove(path, random, others):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _make_directory(path, random, others):
    path.unlink()
    path.mkdir()


def _make_file(path, random, others):
    shutil.rmtree(path)
    path.write_bytes(b"a file")


def _rename(path, random, others):
    path.rename(path.with_name(random.choice(["step_0000009999", "step_x", "step_0"])))


def _copy(path, random, others):
    shutil.copytree(path, path.with_name("step_0000009999"))


OF_CONTENT = (_flip, _flip, _truncate, _zero, _append, _empty, _exchange)
OF_FILES = (*OF_CONTENT, _remove, _make_directory)
OF_STEPS = (_make_file, _rename, _copy, _remove)


def damage(target, random, others, shows):
    """Damage a file or a step, whose times stay; returns what was done."""
    before = target.stat()
    kinds = OF_STEPS if target.is_dir() else OF_CONTENT if shows else OF_FILES
    kind = random.choice(kinds)
    kind(target, random, others)
    if target.exists():  # bits that rot do not change the times
        os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
    return kind.__name__.strip("_").replace("_", " ")


# --- cases ---------------------------------------------------------------------------------------


class Damages(Single):
    """Cases on copies of a finished project below a folder."""

    def __init__(self, finished, base: Path, folder: Path) -> None:
        self._base, self._folder = base, folder
        self._truth: dict[str, tuple[str, str]] = {}

    def run(self, seed, number) -> Outcome:
        random = chance(seed, KIND, number)
        name = random.choice(list(ACTIONS))
        action = ACTIONS[name]
        if name not in self._truth:
            self._truth[name] = self._undisturbed(name, action)
        project = copy_for(action, self._base, self._folder)
        patterns = [one for one in action.reads if any(project.glob(one))]
        target = random.choice(sorted(project.glob(random.choice(patterns))))
        if action.shows:
            while target.is_dir():  # they show what is there
                target = random.choice(sorted(project.glob(random.choice(patterns))))
        others = sorted(path for path in project.rglob("*") if path.is_file())
        before = target.read_bytes() if target.is_file() else b""
        how = damage(target, random, others, action.shows)
        what = f"{name}; {target.relative_to(project)}: {how}"
        done = self._work(action, project)
        harmless = how == "remove" or _says_the_same(target, before)
        result, why = self._judged(name, action, project, target, done, harmless)
        return Outcome(KIND, number, what, result, why)

    def _judged(self, name, action, project, target, done, unnoticeable):
        if done.code is HUNG:
            return OTHER, "it hangs"
        if TRACE in done.said or BUG in done.said:
            return TRACEBACK, done.last
        named = _is_named(target, done.said)
        if done.code in CODES:
            return (REFUSED, "") if named else (OTHER, f"names no file: {done.last}")
        if done.code != 0:
            return OTHER, f"exit code {done.code}: {done.last}"
        made, said = action.made(project), shown(done.said)
        page = (project / action.tells).read_text() if action.tells else done.said
        told = "damaged" in page and _is_named(target, page)
        if name == "runs verify":  # it finds all that can be found
            return (RESTORED, "") if unnoticeable else (SILENT, done.last)
        if (made, said if action.shows else "") == (self._truth[name][0], self._truth[name][1]):
            return RESTORED, ""
        if told and (action.shows or action.tells):
            return REFUSED, ""
        if unnoticeable and target.name == "sessions.jsonl":
            return RESTORED, ""
        return (UNEQUAL if "continue" in name else SILENT), done.last

    def _undisturbed(self, name, action):
        project = copy_for(action, self._base, self._folder)
        done = self._work(action, project)
        assert done.code == 0, f"{name} fails without damage: {done.said}"
        return action.made(project), shown(done.said) if action.shows else ""

    def _work(self, action, project):
        said = self._folder / "said"
        said.unlink(missing_ok=True)
        return forked(action.work, project, said)


def _is_named(target, text):
    step = target.parent.name.removeprefix("step_").lstrip("0")  # as a table shows it
    return any(one in text for one in (target.name, target.parent.name, f" {step} "))


def _says_the_same(target, before):
    """Whether damage cannot be found, because nothing is lost that a reader could miss.

    A letter of an exponent may change its case; a kill may cut the end of lines that are appended.
    """
    if not target.is_file():
        return False
    now = target.read_bytes()
    if target.suffix == ".jsonl" and before.startswith(now.rpartition(b"\n")[0]):
        return True
    with suppress(ValueError, RecursionError):
        return [*map(json.loads, now.splitlines())] == [*map(json.loads, before.splitlines())]
    with suppress(ValueError, RecursionError):
        return json.loads(now) == json.loads(before)
    return False
