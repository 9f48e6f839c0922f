"""What callers write stays text, also where it looks like one of the model's control tokens. Pure.

A chat template makes one string of roles, marks and what people wrote, and in that string ``<|im_end|>`` is a token
whoever wrote it: a stranger's message could end its own turn and speak as the system. So each such place in a message
is cut in two before the template sees it, with a character that no text has, and the prompt is tokenised piece by
piece.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

#: A noncharacter of Unicode: no text that is meant for others has it.
CUT = "\ufdd0"


class Literal:
    """Finds control tokens in messages.

    Args:
        controls: the texts of the model's control tokens.
    """

    def __init__(self, controls: Iterable[str]) -> None:
        # Those of one character cannot be cut. The longest first, or one that begins another would hide it.
        texts = sorted({text for text in controls if len(text) > 1}, key=len, reverse=True)
        self._found = re.compile("|".join(map(re.escape, texts))) if texts else None

    def cut(self, value: Any) -> Any:
        """The same strings, lists and mappings, with a `CUT` within each control token; `value` itself if none has any.

        The names of a mapping are left as they are: they come from the template's own interface.
        """
        if self._found is None:
            return value
        if isinstance(value, str):
            # Again, for what comes together of two that overlap.
            while (cut := self._found.sub(lambda match: match[0][:1] + CUT + match[0][1:], value)) != value:
                value = cut
            return value
        if isinstance(value, list):
            items = [self.cut(item) for item in value]
            return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
        if isinstance(value, dict):
            fields = {name: self.cut(item) for name, item in value.items()}
            return fields if any(fields[name] is not value[name] for name in fields) else value
        return value


def pieces(prompt: str) -> list[str]:
    """A prompt's pieces, to be tokenised each by itself; one for nearly all."""
    return prompt.split(CUT)
