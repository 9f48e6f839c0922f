"""The chats of the demo's second act, live in a grid."""

from __future__ import annotations

import contextlib
import textwrap
import time
from collections.abc import Callable, Iterator

from rich.box import ROUNDED
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from runners.cli.demo_chats import Act, Chat, plain

_COLUMNS = 4
_LEAST_WIDTH, _LEAST_HEIGHT = 72, 18
_STYLES = {"waiting": "dim", "talking": "green", "again": "yellow", "done": "bright_black", "lost": "red"}
_FLASH = 1.0


@contextlib.contextmanager
def live_grid(act: Act, console: Console | None = None) -> Iterator[Callable[[], None] | None]:
    """What draws the grid anew, in the place of the last one; None where the terminal is too small for it."""
    console = console or Console(highlight=False)
    if console.width < _LEAST_WIDTH or console.height < _LEAST_HEIGHT:
        yield None
        return
    with Live(console=console, auto_refresh=False) as live:
        yield lambda: live.update(grid(act, console.width, console.height, time.perf_counter()), refresh=True)


def grid(act: Act, width: int, height: int, now: float) -> RenderableType:
    """16 cells, each with the end of its chat's text, and a line below."""
    rows = -(-len(act.chats) // _COLUMNS)
    lines = max(1, (height - 3) // rows - 2)
    table = Table.grid(expand=True)
    for _ in range(_COLUMNS):
        table.add_column(ratio=1)
    cells = [_cell(chat, width // _COLUMNS, lines) for chat in act.chats]
    for row in range(rows):
        table.add_row(*cells[row * _COLUMNS : (row + 1) * _COLUMNS])
    fresh = act.killed is not None and now - act.killed_at < _FLASH
    return Group(table, Text(f" {act.headline()}", style="bold red" if fresh else "bold"))


def _cell(chat: Chat, width: int, lines: int) -> Panel:
    shown = textwrap.wrap(plain(chat.text), max(8, width - 4))[-lines:]
    mark = "↻ " if chat.asked_again else ""
    return Panel(
        Text("\n".join(shown), no_wrap=True),
        title=Text(f"{mark}{chat.question}", style="bold" if chat.state != "done" else ""),
        title_align="left",
        border_style=_STYLES[chat.state],
        box=ROUNDED,
        height=lines + 2,
    )
