"""Property tests are not timed: on a busy machine a slow example says nothing."""

from __future__ import annotations

import hypothesis

hypothesis.settings.register_profile("runners", deadline=None)
hypothesis.settings.load_profile("runners")
