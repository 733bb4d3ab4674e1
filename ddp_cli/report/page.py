"""The HTML file: what a report shows as JSON, the program that draws it, and its videos, in one file.

A browser runs nothing of the data: the JSON is escaped, the program writes text with `textContent` alone, and a
Content-Security-Policy allows this program, named by its hash, and no request to a network.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ASSETS = Path(__file__).parent / "assets"
LIBRARY, LIBRARY_STYLE, LIBRARY_LICENSE = "uPlot.iife.min.js", "uPlot.min.css", "uPlot.LICENSE"
SCRIPTS = ("elements.js", "charts.js", "player.js", "dataset.js", "runs.js", "evaluations.js", "policy.js", "main.js")
"""In the order in which they are run; each uses names of those before it."""

Section = dict[str, Any]
"""What one part of a page shows, as JSON; `kind` says which of the scripts draws it."""


def render_page(title: str, sections: Sequence[Section], videos: Mapping[str, bytes | str]) -> str:
    """The HTML of a page. `videos`: id -> an MP4 file that the page holds, or the relative path of one beside it."""
    library = f"/*!\n{_read(LIBRARY_LICENSE)}\n*/\n{_read(LIBRARY)}"
    program = "\n".join(_read(name) for name in SCRIPTS)
    script = f"{library}\n(() => {{\n'use strict';\n{program}\n}})();\n"
    style = f"{_read(LIBRARY_STYLE)}\n{_read('page.css')}"
    paths = {id: content for id, content in videos.items() if isinstance(content, str)}
    contents = {id: content for id, content in videos.items() if isinstance(content, bytes)}
    values = {
        "title": html.escape(title),
        "policy": _security_policy(script, style),
        "style": style,
        "script": script,
        "data": to_json({"title": title, "sections": sections, "videos": paths}),
        "videos": "\n".join(
            f'<script type="text/plain" id="{id}">{base64.b64encode(content).decode()}</script>'
            for id, content in contents.items()
        ),
    }
    # In one pass: a value that looks like a placeholder is not replaced.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], _read("page.html"))


def to_json(value: Any) -> str:
    """`value` as JSON that cannot end the HTML element around it. Numbers that are not finite become null."""
    text = json.dumps(_finite(value), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(x) for key, x in value.items()}
    return [_finite(x) for x in value] if isinstance(value, list | tuple) else value


def _security_policy(script: str, style: str) -> str:
    def source(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    # Videos beside the page are of the page's own origin, which is `file:` where it is opened from a disk.
    return (
        f"default-src 'none'; script-src {source(script)}; style-src {source(style)}; img-src data:; "
        "media-src blob: 'self' file:; base-uri 'none'; form-action 'none'"
    )


def _read(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")
