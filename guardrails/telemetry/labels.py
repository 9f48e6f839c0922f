"""Labels with a bounded set of values, so that no metric ever has more series than its reader can hold.

The first `limit` values of a label are kept as they are. All that come later share the value ``other``. Guards that
`keyed` made are counted under the name of the `keyed`, for their own may be a user's key.
"""

from __future__ import annotations

from guardrails.core.names import public

#: Stands for every value beyond the limit.
OTHER = "other"
#: Characters of a value that are kept.
MAX_LENGTH = 100


class Labels:
    """The values that each label has had. Not for several threads at once.

    A label's set is shared by all metrics that have it: a guard that is ``other`` in one is ``other`` in all.

    Args:
        limit: different values of each label, at least 1.

    Raises:
        ValueError: `limit` is out of range.
    """

    def __init__(self, limit: int = 100) -> None:
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
            raise ValueError(f"limit takes a whole number of at least 1, not {limit!r}")
        self.limit = limit
        self._seen: dict[str, set[str]] = {}

    def value(self, label: str, value: object) -> str:
        """What `value` is called under `label`: itself, cut to 100 characters, or ``other``."""
        text = str(public(value) if isinstance(value, str) else value)[:MAX_LENGTH]
        seen = self._seen.setdefault(label, set())
        if text in seen:
            return text
        if len(seen) >= self.limit:
            return OTHER
        seen.add(text)
        return text

    def values(self, labels: tuple[str, ...], values: tuple[object, ...]) -> tuple[str, ...]:
        """`value` of each.

        Raises:
            ValueError: there are not as many values as labels.
        """
        return tuple(self.value(label, value) for label, value in zip(labels, values, strict=True))


__all__ = ["MAX_LENGTH", "OTHER", "Labels"]
