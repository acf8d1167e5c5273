"""How objects show themselves in a notebook: tables and pictures as HTML."""

import html
import io
from base64 import b64encode
from collections.abc import Iterable, Sequence
from typing import Any


def html_table(rows: Iterable[Sequence[str]], heads: Sequence[str] = ()) -> str:
    """A table; the first cell of a row is its name. Cells are texts, and are escaped."""
    head = "".join(f"<th>{html.escape(each)}</th>" for each in heads)
    lines = [f"<tr>{head}</tr>"] if heads else []
    for name, *cells in rows:
        lines.append(f"<tr><th>{html.escape(name)}</th>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>")
    return f"<table>{''.join(lines)}</table>"


def png(figure: Any) -> bytes:
    """A matplotlib figure as a picture."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()


def html_picture(image: bytes, description: str) -> str:
    """A picture that is part of the page."""
    return f'<img alt="{html.escape(description)}" src="data:image/png;base64,{b64encode(image).decode()}">'
