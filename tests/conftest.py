"""What holds for all tests."""

import hypothesis

from tests.support import start_programs_with_default_signals

start_programs_with_default_signals()

# One profile for the whole suite: a test sets no more than `max_examples`, or a state machine its steps. Examples are
# not timed, since on a busy machine a slow one says nothing. A failure prints the blob that repeats it.
hypothesis.settings.register_profile("suite", deadline=None, print_blob=True)
hypothesis.settings.load_profile("suite")
