"""The built viewer (sources in viewer/ of the repository): one script, one stylesheet, and the pages that hold them."""

from __future__ import annotations

import base64
import hashlib
import html
from functools import cache
from importlib.resources import files

ROWS_MARK = "<!--rows-->"
"""Position in the report's page where rows and pictures are inserted."""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<div id="viewer"></div>
<noscript><p class="banner loud">This report is drawn by embedded JavaScript. Allow it for this file.</p></noscript>
<script type="application/json" id="data">{data}</script>
{rows}
<script>{script}</script>
</body>
</html>
"""

_VIEW = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>clipspect</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/viewer/viewer.css">
</head>
<body>
<div id="viewer" data-view="{view}"></div>
<noscript><p class="banner loud">The page needs JavaScript.</p></noscript>
<script src="/viewer/viewer.js"></script>
</body>
</html>
"""


@cache
def asset(name: str) -> str:
    """Return the text of a built file: "viewer.js" or "viewer.css"."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def view_page(view: str) -> str:
    """Return the page of `clipspect ui`: "page" inspects images, "line" shows a watch."""
    return _VIEW.format(view=view)


def report_page(title: str, data: str) -> tuple[str, str]:
    """Return the page of a report before and after its rows.

    The page runs the viewer's script alone: the Content-Security-Policy names its hash. Nothing is fetched but overlay
    files in the report's own folder.

    Args:
        title: any text; it is escaped.
        data: JSON that is safe inside a script element.
    """
    style, script = asset("viewer.css"), asset("viewer.js")
    policy = (
        f"default-src 'none'; img-src 'self' data: blob:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    page = _PAGE.format(
        policy=policy, title=html.escape(title), style=style, script=script, data=data, rows=ROWS_MARK
    )
    before, _, after = page.partition(ROWS_MARK)
    return before, after


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
