"""Plain-text tables that fit 80 columns."""

from collections.abc import Sequence
from textwrap import wrap

WIDTH = 80


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()
) -> str:
    """Columns as wide as their widest cell; those in `right` are set flush right.

    >>> print(table(["pool", "n"], [["a", "12"], ["bb", "3"]], right=[1]))
    pool   n
    a     12
    bb     3
    """
    lines = [list(header), *[list(row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def entry(label: str, text: str, *, indent: int = 14, width: int = WIDTH) -> str:
    """One labelled paragraph, wrapped under itself.

    >>> print(entry("TPOT", "49.4 ms"))
    TPOT          49.4 ms
    """
    lines = wrap(text, width - indent, break_on_hyphens=False) or [""]
    head = f"{label:<{indent}}{lines[0]}"
    return "\n".join([head, *[" " * indent + line for line in lines[1:]]])
