"""Tables for other programs: CSV with SI numbers, and Markdown for a page."""

import csv
import io
from collections.abc import Sequence

Cell = str | float | int | None


def csv_text(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Comma-separated as RFC 4180 says, lines ended by a newline; what is not known is an empty cell.

    >>> print(csv_text(["id", "memory_bytes"], [["a, b", 96e9], ["c", None]]))
    id,memory_bytes
    "a, b",96000000000.0
    c,
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(["" if cell is None else cell for cell in row] for row in rows)
    return out.getvalue().removesuffix("\n")


def markdown_text(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table as GitHub's Markdown has them; bars in a cell are escaped, line ends become spaces.

    >>> print(markdown_text(["id", "note"], [["a", "x|y"]]))
    | id | note |
    |---|---|
    | a | x\\|y |
    """
    lines = [_line(header), f"|{'---|' * len(header)}", *(_line(row) for row in rows)]
    return "\n".join(lines)


def _line(cells: Sequence[Cell]) -> str:
    texts = ("" if cell is None else str(cell) for cell in cells)
    joined = " | ".join(" ".join(text.replace("|", "\\|").split()) for text in texts)
    return f"| {joined} |"
