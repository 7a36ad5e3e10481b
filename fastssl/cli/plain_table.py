"""Tables as all verbs print them."""

from __future__ import annotations

from rich.table import Table


def plain_table(*headings: str) -> Table:
    """Return a table without lines, whose cells are broken where they must be, and never cut off.

    Rich would cut what has no blanks to break at, as a text in Chinese.
    """
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table
