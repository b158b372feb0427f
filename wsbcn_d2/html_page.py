"""HTML pages in one file, which need no network and no script."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tabulate import tabulate

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

__all__ = ["figure_tag", "html_page", "html_table", "image_tag", "picture_tag"]

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<style>body {{ font: 15px sans-serif; margin: 2em auto; padding: 0 1em; max-width: 70em }}
td, th {{ padding: 2px 1em; text-align: left; vertical-align: top }}
{style}</style></head>
<body><h1>{title}</h1>
{body}
</body></html>
"""


def html_page(title: str, body: str, style: str = "") -> str:
    """A whole page.

    Args:
        title: plain text, also its heading.
        body: HTML.
        style: CSS, besides that of all pages.
    """
    return _PAGE.format(title=html.escape(title), body=body, style=style)


def html_table(rows: Sequence[Sequence[str]], header: Sequence[str], *, numbers: bool) -> str:
    """A table of plain text, which scrolls where it is wider than the page.

    Args:
        rows: of cells.
        header: the columns' names.
        numbers: whether all columns but the first are aligned to the right.
    """
    align = ["left", *(["right" if numbers else "left"] * (len(header) - 1))]
    table = tabulate(
        rows, headers=header, tablefmt="html", disable_numparse=True, colalign=align if rows else ()
    )
    return f'<div style="overflow-x: auto">{table}</div>'


def image_tag(data: bytes, kind: str, alt: str) -> str:
    """An image within the page.

    Args:
        data: the file's content.
        kind: ``"png"`` or ``"jpeg"``.
        alt: what it shows, in plain text.
    """
    alt = html.escape(alt)
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return f'<img src="{source}" alt="{alt}" title="{alt}">'


def picture_tag(image: Image.Image, alt: str) -> str:
    """A photograph, as JPEG.

    Args:
        image: in RGB.
        alt: as for `image_tag`.
    """
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=90)
    return image_tag(buffer.getvalue(), "jpeg", alt)


def figure_tag(figure: Figure, caption: str, dpi: int = 150) -> str:
    """A figure of matplotlib, as PNG, with its caption.

    Args:
        figure: to be drawn.
        caption: plain text below it.
        dpi: pixels an inch.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    image = image_tag(buffer.getvalue(), "png", caption)
    return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"
