"""What holds for all tests."""

from tests.support import start_programs_with_default_signals

start_programs_with_default_signals()
