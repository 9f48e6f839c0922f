"""Measures what a template makes while it renders, and puts the meter into the template.

An allowance of time and memory for one rendering: see `runners.worker.engines.llama.sandbox`, which asks it.
"""

# ruff: noqa: N802 - Jinja names visitors after nodes

from __future__ import annotations

import time
from typing import Any, cast

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Undefined
from jinja2.visitor import NodeTransformer

#: What one rendering may make in all, in characters; an element of a list counts as eight.
ALLOWANCE = 64 * 1024 * 1024
ELEMENT = 8
#: What a container may hold in all to be written or compared.
_MAX_WEIGHT = 8 * 1024 * 1024
_MAX_BITS = 4096


class Refusal(Exception):
    """The template called ``raise_exception``."""


class LimitExceeded(Exception):
    """The template needs more time or memory than one may."""


class Meter:
    """The time and the allowance that one rendering has left."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds
        self._left = ALLOWANCE

    def tick(self) -> None:
        """Raises LimitExceeded when the time is up."""
        if time.monotonic() > self._end:
            raise LimitExceeded(f"takes longer than {self._seconds:g} s")

    def charge(self, size: int) -> None:
        """Take `size` characters from the allowance."""
        self._left -= size
        if self._left < 0:
            raise LimitExceeded(f"makes more than {ALLOWANCE:,} characters of texts and lists")
        self.tick()

    def made(self, value: Any) -> Any:
        """Charge for `value`, which was just made, and give it back."""
        if isinstance(value, str):
            self.charge(len(value))
        elif isinstance(value, list | tuple | dict):
            self.charge(ELEMENT * len(value))
        elif isinstance(value, int) and value.bit_length() > _MAX_BITS:
            raise LimitExceeded(f"makes a number of more than {_MAX_BITS:,} bits")
        return value

    def weigh(self, value: Any) -> int:
        """The characters and elements in `value`, as often as they would be written."""
        if isinstance(value, str):
            return len(value)
        weight = 0
        left = [value]
        while left:
            item = left.pop()
            weight += len(item) if isinstance(item, str) else 1
            if isinstance(item, dict):
                left.extend(item)
                left.extend(item.values())
            elif isinstance(item, list | tuple):
                left.extend(item)
            elif not isinstance(item, str | int | float | Undefined | None):
                raise SecurityError(f"a {type(item).__name__} cannot be written or compared")
            if weight > _MAX_WEIGHT:
                raise LimitExceeded(f"writes or compares a value of more than {_MAX_WEIGHT:,} characters")
            if not weight & 1023:
                self.tick()
        return weight


class Metered(NodeTransformer):
    """Puts the meter where Jinja's own code makes or compares something without asking the environment."""

    def _call(self, name: str, node: nodes.Node, argument: nodes.Node) -> nodes.Call:
        method = nodes.EnvironmentAttribute(name, lineno=node.lineno)
        return nodes.Call(method, [cast("nodes.Expr", argument)], [], None, None, lineno=node.lineno)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = self._call("ticking", node, node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._call("joined", node, nodes.List(node.nodes, lineno=node.lineno))

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        # Calling charges for the result.
        return self._call("same", node, node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        # A tuple may become a key, and a key is hashed with all it holds.
        return self._call("weighed", node, node) if node.ctx == "load" else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = self._call("weighed", node, node.expr)
        for operand in node.ops:
            operand.expr = self._call("weighed", node, operand.expr)
        return node
