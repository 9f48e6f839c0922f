"""Who has which prefix: a compressed radix tree over token ids. Pure.

::

                      ┌─ [7 7 3]──────  holder 0           insert([1 5 9 2 7 7 3], 0)
    root ─ [1 5 9 2] ─┤                                    insert([1 5 9 2 4], 1)
                      └─ [4] ─ [8 8]──  holder 2           insert([1 5 9 2 4 8 8], 2)
                          holder 1

An edge is one array, compared as a whole, so a lookup costs about as much as comparing the tokens in memory.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable


class _Node:
    """An edge and what is below it."""

    __slots__ = ("children", "holders", "parent", "tokens")

    def __init__(self, tokens: array[int], parent: _Node | None, holders: set[int]) -> None:
        self.tokens = tokens  # on the way from the parent to here; never empty but at the root
        self.parent = parent
        self.holders = holders  # that end here or below
        self.children: dict[int, _Node] = {}  # by the first token


class RadixTree:
    """Token strings, each of one holder (a small integer: a sequence id)."""

    def __init__(self) -> None:
        self._root = _Node(array("i"), None, set())
        self._ends: dict[int, _Node] = {}

    def __len__(self) -> int:
        """Holders."""
        return len(self._ends)

    def __contains__(self, holder: int) -> bool:
        return holder in self._ends

    def insert(self, tokens: Iterable[int], holder: int) -> None:
        """Note that `holder` has `tokens`, in place of what it had before."""
        self.remove(holder)
        tokens = _tokens(tokens)
        node, at = self._root, 0
        node.holders.add(holder)
        while at < len(tokens):
            child = node.children.get(tokens[at])
            if child is None:
                child = _Node(tokens[at:], node, set())
                node.children[tokens[at]] = child
                at = len(tokens)
            else:
                common = _common(child.tokens, tokens, at)
                if common < len(child.tokens):
                    child = _split(node, child, common)
                at += common
            child.holders.add(holder)
            node = child
        self._ends[holder] = node

    def remove(self, holder: int) -> None:
        """Forget what `holder` has, if anything. Costs its own path: nothing is searched."""
        node: _Node | None = self._ends.pop(holder, None)
        while node is not None:
            node.holders.discard(holder)
            if node.parent is not None:
                if not node.holders:
                    del node.parent.children[node.tokens[0]]
                else:
                    self._merge(node)
            node = node.parent

    def _merge(self, node: _Node) -> None:
        """Join a node with its only child, unless somebody ends between them."""
        if len(node.children) != 1:
            return
        (child,) = node.children.values()
        if len(child.holders) != len(node.holders):
            return
        node.tokens = node.tokens + child.tokens
        node.children = child.children
        for below in node.children.values():
            below.parent = node
        for holder in child.holders:
            if self._ends[holder] is child:
                self._ends[holder] = node

    def matches(self, tokens: Iterable[int]) -> list[tuple[int, set[int]]]:
        """For every holder that begins like `tokens`: how many tokens they have in common.

        As (length, holders), longest first; each holder once, none with a length of 0.
        """
        tokens = _tokens(tokens)
        found: list[tuple[int, set[int]]] = []
        node, at = self._root, 0
        while True:
            child = node.children.get(tokens[at]) if at < len(tokens) else None
            leaving = set(node.holders) if child is None else node.holders - child.holders
            if at and leaving:
                found.append((at, leaving))
            if child is None:
                break
            common = _common(child.tokens, tokens, at)
            at += common
            if common < len(child.tokens):
                found.append((at, set(child.holders)))
                break
            node = child
        found.reverse()
        return found

    def longest(self, tokens: Iterable[int]) -> tuple[int, set[int]]:
        """The longest prefix of `tokens` that somebody has, and who; (0, nobody) if there is none."""
        found = self.matches(tokens)
        return found[0] if found else (0, set())


def _tokens(tokens: Iterable[int]) -> array[int]:
    return tokens if isinstance(tokens, array) and tokens.typecode == "i" else array("i", tokens)


def _split(parent: _Node, node: _Node, length: int) -> _Node:
    """Cut an edge in two; returns the new, upper node. The lower one stays the same, for those that end there."""
    upper = _Node(node.tokens[:length], parent, set(node.holders))
    parent.children[upper.tokens[0]] = upper
    node.tokens = node.tokens[length:]
    node.parent = upper
    upper.children[node.tokens[0]] = node
    return upper


def _common(edge: array[int], tokens: array[int], at: int) -> int:
    """How many tokens of `edge` stand in `tokens` from `at` on."""
    known, unknown = 0, min(len(edge), len(tokens) - at)
    if edge[:unknown] == tokens[at : at + unknown]:
        return unknown
    while unknown - known > 1:  # the first difference is in between: halve, comparing only the lower half
        middle = (known + unknown) // 2
        if edge[known:middle] == tokens[at + known : at + middle]:
            known = middle
        else:
            unknown = middle
    return known
