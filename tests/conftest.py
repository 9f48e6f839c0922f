"""What holds for all tests: signals, one hypothesis profile, and no skip that is not on a list."""

import os

import hypothesis
import pytest

from tests.expected_skips import is_expected
from tests.support import start_programs_with_default_signals

start_programs_with_default_signals()

# One profile for the whole suite: a test sets no more than `max_examples`, or a state machine its steps. Examples are
# not timed, since on a busy machine a slow one says nothing. A failure prints the blob that repeats it.
hypothesis.settings.register_profile("suite", deadline=None, print_blob=True)
hypothesis.settings.load_profile("suite")


class _Skips:
    """Collects the skips that are not on the list. With CI set, one of them fails the run."""

    def __init__(self) -> None:
        self.unexpected: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if not is_expected(report.nodeid, reason):
            self.unexpected.append(f"{report.nodeid}: {reason}")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.unexpected and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.unexpected:
            terminalreporter.section("skips that are not in tests/expected_skips.py")
            for line in self.unexpected:
                terminalreporter.line(line)


def pytest_configure(config: pytest.Config) -> None:
    # Under xdist the workers' reports all reach the controller, which decides.
    if os.environ.get("CI") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Skips())
