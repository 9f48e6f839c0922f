"""Composable async guards around any call: an external AI API, a local function, a model.

from guardrails import admit, breaker, guard, timeout

@breaker                     # stops calling what fails
@admit(memory="300MiB")      # waits for, or is refused, 300 MiB of headroom
@timeout(30)                 # and cuts off what hangs
async def caption(image: bytes) -> str: ...
"""

from __future__ import annotations

from guardrails._collision import refuse_foreign_package

refuse_foreign_package()

from guardrails.core.events import subscribe as subscribe  # noqa: E402 - nothing of ours may load before the check
from guardrails.core.pipeline import guard as guard  # noqa: E402
from guardrails.gates.admit import admit as admit  # noqa: E402
from guardrails.gates.breaker import breaker as breaker  # noqa: E402
from guardrails.gates.timeout import timeout as timeout  # noqa: E402

__all__ = ["admit", "breaker", "guard", "subscribe", "timeout"]
