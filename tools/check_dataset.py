"""Look a whole dataset over before an hour is spent on it: every label and every file.

Exits with status 1 where a training would fail or learn from wrong labels.
"""

from __future__ import annotations

import argparse
import html
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageOps
from tabulate import tabulate

from wsbcn_d2 import known_warnings  # noqa: F401  before detectron2
from wsbcn_d2.data.findings import Finding
from wsbcn_d2.data.formats import read_own_data
from wsbcn_d2.data.read_image import is_16_bit, to_8_bit
from wsbcn_d2.data.survey import SplitSurvey, survey
from wsbcn_d2.errors import exit_with_message
from wsbcn_d2.html_page import html_page, picture_tag

__all__ = ["main"]

EPILOG = """
examples:

  $ python tools/check_dataset.py mine
  $ python tools/check_dataset.py mine --masks --html report.html
"""
_THUMBNAIL = 320
_STYLE = "img { margin: 4px } .error { color: #b00 }"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", metavar="FOLDER", help="as for train_net.py --dataset")
    parser.add_argument("--val", default="", metavar="FOLDER", help="as data.val")
    parser.add_argument("--masks", action="store_true", help="for a model with a mask head")
    parser.add_argument("--json", action="store_true", help="print JSON in the place of tables")
    parser.add_argument("--html", metavar="FILE", help="a page with pictures of what was found")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Read, survey, print."""
    args = _parser().parse_args(argv)
    with exit_with_message("check_dataset.py"):
        own = read_own_data(args.dataset, args.val)
        surveys = survey(own, masks=args.masks, progress=not args.json)
    if args.json:
        print(json.dumps([_as_dict(found) for found in surveys], indent=1))
    else:
        print(f"{args.dataset}: {len(own.classes)} classes\n  " + "\n  ".join(own.notes) + "\n")
        print(_table("", {found.name: found.counts for found in surveys}) + "\n")
        print(_table("objects of class", {found.name: found.objects for found in surveys}) + "\n")
        for found in surveys:
            print(
                found.report if found.report.findings else f"{found.report.source}: nothing found"
            )
    if args.html:
        body = "".join(map(_section, surveys))
        page = html_page(args.dataset, body, _STYLE)
        Path(args.html).write_text(page, encoding="utf-8")
    if any(found.report.has_errors() for found in surveys):
        sys.exit(1)


def _as_dict(found: SplitSurvey) -> dict[str, Any]:
    findings = [
        {"severity": finding.severity, "message": finding.message}
        for finding in found.report.findings
    ]
    return {
        "split": found.name,
        "source": found.report.source,
        "counts": found.counts,
        "objects": found.objects,
        "findings": findings,
    }


def _table(title: str, columns: dict[str, dict[str, Any]]) -> str:
    keys = dict.fromkeys(key for column in columns.values() for key in column)
    rows = [[key, *(column.get(key, "–") for column in columns.values())] for key in keys]
    return tabulate(rows, headers=[title, *columns], disable_numparse=True)


def _section(found: SplitSurvey) -> str:
    parts = [f"<h2>{html.escape(found.report.source)}</h2>"]
    parts.append(tabulate(list(found.counts.items()), tablefmt="html"))
    if found.objects:
        parts.append(tabulate(list(found.objects.items()), ["class", "objects"], tablefmt="html"))
    if not found.report.findings:
        parts.append("<p>Nothing found.</p>")
    for finding in sorted(found.report.findings, key=lambda finding: finding.severity):
        parts.append(f'<p class="{finding.severity}">{html.escape(str(finding.severity))}: ')
        parts.append(f"{html.escape(finding.message)}</p>{_pictures(found, finding)}")
    return "\n".join(parts)


def _pictures(found: SplitSurvey, finding: Finding) -> str:
    pictures = []
    for entry in finding.examples:
        number = entry.get("image_id", entry.get("id")) if isinstance(entry, dict) else None
        try:
            pictures.append(_picture(found.files[number], entry.get("bbox")))
        except Exception:  # what is found may well be that there is no picture
            continue
    return "".join(pictures)


def _picture(path: str, box: Any) -> str:
    """An image, with the box (x, y, width, height) in red."""
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(to_8_bit(opened) if is_16_bit(opened) else opened)
        image = image.convert("RGB")
    scale = _THUMBNAIL / max(image.size)
    image = image.resize([max(1, round(side * scale)) for side in image.size])
    if box is not None:
        x, y, w, h = (value * scale for value in box)
        # An empty box is drawn as a cross's centre would be seen: a few pixels around it.
        ImageDraw.Draw(image).rectangle((x - 2, y - 2, x + max(w, 0) + 2, y + max(h, 0) + 2),
                                        outline=(255, 0, 0), width=2)  # fmt: skip
    return picture_tag(image, path)


if __name__ == "__main__":
    main()
