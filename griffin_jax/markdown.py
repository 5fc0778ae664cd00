"""Tables in Markdown, for reports and the screen."""

from collections.abc import Iterable, Sequence


def table(
    head: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    numbers: bool = True,
    lined_up: bool = False,
) -> str:
    """Returns a table, a line for each row.

    Args:
      head: What the columns are.
      rows: As many cells each.
      numbers: Put all columns but the first to the right.
      lined_up: Fill cells up with blanks, so that columns stand under one another as text, too.
    """
    lines = [[str(cell).replace("|", "\\|") for cell in cells] for cells in (head, *rows)]
    right = [numbers and place > 0 for place in range(len(head))]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if not lined_up:
        widths = [4 if to_right else 3 for to_right in right]
    rule = [
        "-" * (width - 1) + ":" if to_right else "-" * width
        for width, to_right in zip(widths, right, strict=True)
    ]

    def line(cells):
        if lined_up:
            cells = [
                cell.rjust(width) if to_right else cell.ljust(width)
                for cell, width, to_right in zip(cells, widths, right, strict=True)
            ]
        return "| " + " | ".join(cells) + " |"

    return "\n".join(map(line, (lines[0], rule, *lines[1:])))
