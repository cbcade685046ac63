"""Plug-in of pytest: ``pytest --millrace-check my_system.py`` adds a test for each model and contract.

It is loaded by every pytest in the environment, so that it imports nothing before it is asked to.
"""

from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option ``--millrace-check``."""
    parser.getgroup("millrace").addoption(
        "--millrace-check",
        action="append",
        default=[],
        metavar="NAME",
        help="check a plug-in of Millrace, by its file or module, as `millrace check` does",
    )


@pytest.hookimpl(tryfirst=True)  # so that -k and -m choose among them
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Add the tests to those that are collected."""
    if names := config.getoption("--millrace-check"):
        from millrace.checking.subjects import find_subjects
        from millrace.errors import UserError

        try:
            subjects = find_subjects(names)
        except UserError as error:
            raise pytest.UsageError(f"--millrace-check: {error}") from None
        items += [
            ContractItem.from_parent(
                session,
                name=f"{subject.name}[{contract.__name__}]",
                subject=subject,
                contract=contract,
            )
            for subject in subjects
            for contract in subject.contracts
        ]


class ContractItem(pytest.Item):
    """One contract of one model."""

    def __init__(self, *, subject: Any, contract: Any, **given: Any) -> None:
        super().__init__(**given)
        self.subject, self.contract = subject, contract

    def runtest(self) -> None:
        """Hold the model to the contract."""
        from millrace.checking.case import NotTried

        try:
            reason = self.subject.failure(self.contract)
        except NotTried as error:
            pytest.skip(str(error))
        if reason:
            pytest.fail(f"{self.contract.__doc__}\n{reason}", pytrace=False)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Say what failed."""
        return self.path, None, self.name
