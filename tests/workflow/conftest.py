"""A tiny project that has run to the end."""

import pytest
from project import FOLDER, Project


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Project:
    """A project that has run to the end; copy it with `project`."""
    project = Project(tmp_path_factory.mktemp("finished") / FOLDER)
    project.run()
    return project


@pytest.fixture
def project(finished, tmp_path) -> Project:
    """A finished project to change and plan again, times of all files kept."""
    return finished.copy(tmp_path / FOLDER)
