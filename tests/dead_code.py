"""Fails on code of the library that nothing uses, or only tests (`make lint`).

Vulture reads Python alone; names that rules, templates and references like ``module:object`` use count as
used, too. `[tool.vulture]` in pyproject.toml lists what others call by name.
"""

import keyword
import re
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def names_used_elsewhere():
    """Words of the rules and templates, and objects that the library names in strings."""
    workflow = REPOSITORY / "workflow"
    texts = [REPOSITORY / "Snakefile", *workflow.rglob("*.smk"), *workflow.rglob("*.j2")]
    for path in texts:
        yield from re.findall(r"\b[A-Za-z]\w+", path.read_text())
    for path in workflow.rglob("*.py"):
        yield from re.findall(r":([A-Za-z_]\w*)\"", path.read_text())


def main():
    with tempfile.NamedTemporaryFile("w", suffix=".py") as used:
        names = {name for name in names_used_elsewhere() if not keyword.iskeyword(name)}
        used.write("\n".join(f"_.{name}" for name in sorted(names)))
        used.flush()
        library = ["workflow/millrace", "workflow/scripts", used.name]
        done = subprocess.run([Path(sys.executable).with_name("vulture"), *library], cwd=REPOSITORY)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
