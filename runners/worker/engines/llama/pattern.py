r"""From the patterns of JSON schemas to the few forms that llama-cpp-python's converter reads. Pure.

It reads characters, sets, groups, ``|`` and quantifiers. On others it runs for ever, or makes a grammar that does not
parse, or one in which a ``.`` is also the quote that ends the JSON text. Here ``.``, ``\d``, ``\w``, ``\s`` and
escaped characters become sets, sets never hold what JSON writes with a backslash, and everything else is refused.
"""

from __future__ import annotations

import re

MAX_LENGTH = 1_000
#: One quantifier: the converter makes a level of brackets of each, and the parser of grammars calls itself for each.
MAX_REPEAT = 200
_MAX_GROUPS = 32
_QUANTIFIER = re.compile(r"\{(\d{1,4})(,(\d{1,4})?)?\}")
#: What a JSON text writes with a backslash: the quote, the backslash, control characters.
_NOT_PLAIN = r"\x22\x5C\x01-\x1F"
_CLASSES = {"d": "0-9", "w": "a-zA-Z0-9_", "s": " "}


def plain_pattern(pattern: str) -> tuple[str, int]:
    """`pattern` in the forms that are read, and how many repetitions its quantifiers count.

    Raises:
        ValueError: it has a part that cannot be written so.
    """
    if len(pattern) > MAX_LENGTH:
        raise ValueError(f"json_schema: a pattern takes at most {MAX_LENGTH:,} characters")
    if len(pattern) < 2 or pattern[0] != "^" or pattern[-1] != "$":
        raise ValueError('json_schema: a pattern must begin with "^" and end with "$"')
    body = pattern[1:-1]
    out: list[str] = []
    at = depth = repeats = 0
    quantifiable = False
    while at < len(body):
        char = body[at]
        after = at + 1
        quantifier = char in "*+?{"
        if char == "\\":
            out.append(f"[{_escaped(body[after : after + 1])}]")
            after += 1
        elif char == "[":
            made, after = _set(body, after)
            out.append(made)
        elif char == ".":
            out.append(f"[^{_NOT_PLAIN}]")
        elif quantifier:
            if not quantifiable:
                raise _bad("a quantifier without something before it, or after another")
            if char == "{":
                low, high, after = _counts(body, at)
                repeats += max(low, high)
            out.append(body[at:after])
        else:
            depth += {"(": 1, ")": -1}.get(char, 0)
            if not 0 <= depth <= _MAX_GROUPS:
                raise _bad(f"a ) without (, or groups more than {_MAX_GROUPS} deep")
            before = body[at - 1 : at] if at else "("
            if char in "|)" and not quantifiable and before in "(|":
                raise _bad("an empty group or alternative")
            out.append(char if char in "()|" else _plain(char))
        quantifiable = not quantifier and char not in "(|"
        at = after
    if depth or (out and out[-1] == "|"):
        raise _bad("a ( without ), or an empty alternative")
    # The converter puts the quotes of the JSON text beside the first and the last alternative otherwise.
    return f"^({''.join(out)})$" if "|" in out else f"^{''.join(out)}$", repeats


def _set(body: str, at: int) -> tuple[str, int]:
    """The set whose inside begins at `at`, and where it ends."""
    negated = body.startswith("^", at)
    at += negated
    out: list[str] = []
    while at < len(body) and body[at] != "]":
        if body[at] == "\\":
            out.append(_escaped(body[at + 1 : at + 2]))
            at += 2
        elif body[at] == "[":
            raise _bad("an unescaped [ in a set")
        else:
            out.append(_plain(body[at]))
            at += 1
    if at >= len(body) or not out:
        raise _bad("a set that is empty or has no end")
    for first, last in re.findall(r"(.)-(.)", _readable(out)):
        if first > last:
            raise _bad(f"the range {first}-{last}, which ends before it begins")
    if not negated and re.search(r"[\x00-\x22]-[\x22-\U0010ffff]|[\x22-\x5c]-[\x5c-\U0010ffff]", _readable(out)):
        raise _bad("a range over the quote or the backslash")
    return f"[^{''.join(out)}{_NOT_PLAIN}]" if negated else f"[{''.join(out)}]", at + 1


def _readable(parts: list[str]) -> str:
    # A class is no end of a range.
    return "".join(
        bytes.fromhex(part[2:]).decode() if part.startswith("\\x") else part if len(part) == 1 else "" for part in parts
    )


def _counts(body: str, at: int) -> tuple[int, int, int]:
    found = _QUANTIFIER.match(body, at)
    if found is None:
        raise _bad("a { that begins no quantifier")
    low = int(found[1])
    high = int(found[3]) if found[3] else low
    if high < low or high > MAX_REPEAT:
        raise _bad(f"a quantifier out of 0 to {MAX_REPEAT}")
    return low, high, found.end()


def _escaped(char: str) -> str:
    """The inside of a set for an escaped character."""
    if char in _CLASSES:
        return _CLASSES[char]
    if not char or char.isalnum() or ord(char) > 126:
        raise _bad("an escape that is not known")
    _plain(char, special="")
    return f"\\x{ord(char):02X}"


def _plain(char: str, special: str = "]}^$\\") -> str:
    if char in '"\\' or ord(char) < 32:
        raise _bad("a quote, a backslash or a control character, which JSON writes in another way")
    if char in special:
        raise _bad("an unescaped ], }, ^ or $")
    return char


def _bad(what: str) -> ValueError:
    return ValueError(f"json_schema: a pattern holds {what}, which cannot be made a grammar")
