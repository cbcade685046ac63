"""What pyproject.toml cannot say: a wheel holds the workflow that the library belongs to."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

# Files of the checkout that `millrace.home` looks for in `millrace/installed`.
PATTERNS = ("Snakefile", "pyproject.toml", "workflow/rules/*.smk", "workflow/scripts/*.py")
PATTERNS += ("workflow/report/*.rst", "config/**/*", "envs/*", "profiles/**/*")


class BuildWithWorkflow(build_py):
    """Copy these files beside the modules, unless the library is used where it lies."""

    def run(self) -> None:
        """Copy modules, then these files."""
        super().run()
        if self.editable_mode:
            return
        for pattern in PATTERNS:
            for path in filter(Path.is_file, Path().glob(pattern)):
                copy = Path(self.build_lib, "millrace/installed", path)
                self.mkpath(str(copy.parent))
                self.copy_file(str(path), str(copy))


setup(cmdclass={"build_py": BuildWithWorkflow})
