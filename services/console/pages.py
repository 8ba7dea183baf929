"""The pages of links: plain HTML that works without scripts, in any browser, by keyboard and by screen reader."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from html import escape
from typing import Any

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; "
    "base-uri 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Robots-Tag": "noindex",
}

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif }}
main {{ max-width: 40rem; margin: 3rem auto; padding: 0 1rem }}
h1 {{ font-size: 1.4rem }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem }}
dt {{ font-weight: 600 }}
dd {{ margin: 0; overflow-wrap: anywhere }}
label {{ display: block; margin-top: 1rem }}
input, textarea {{ width: 100%; box-sizing: border-box; font: inherit; padding: .4rem }}
button {{ font: inherit; padding: .6rem 1.4rem; margin: 1.2rem .8rem 0 0; border-radius: .4rem; border: 2px solid;
  cursor: pointer }}
button {{ background: #14532d; border-color: #14532d; color: #fff }}
button.cancel {{ background: #7f1d1d; border-color: #7f1d1d }}
button:focus-visible, input:focus-visible, textarea:focus-visible {{ outline: 3px solid #2563eb; outline-offset: 2px }}
</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
_LABELS = {"approve": "Approve", "cancel": "Reject: end the run"}
_TITLES = {
    "decided": "Done", "already-decided": "Already decided", "run-over": "Nothing to decide", "stage-over": "Nothing to decide",
    "link-expired": "This link has expired", "link-invalid": "This link is not valid",
    "not-an-approver": "This link cannot decide",
}  # fmt: skip


def question(about: Mapping[str, Any], action: str, other: str) -> str:
    """Who asks for what, and the button of this link. `about`: see `core.decision_view`; `other`: token of the other link."""
    facts = "\n".join(
        f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in about["facts"].items() if value
    )
    message = f"<p>{escape(about['message'])}</p>" if about["message"] else ""
    body = f"""<h1>{escape(about["title"])}</h1>
{message}
<dl>
{facts}
</dl>
<form method="post">
<label for="name">Your name (optional, shown to others)</label>
<input id="name" name="name" maxlength="100" autocomplete="name">
<label for="comment">Comment (optional)</label>
<textarea id="comment" name="comment" rows="3" maxlength="1000"></textarea>
<button class="{action}">{_LABELS[action]}</button>
</form>
<p><a href="{escape(other)}">{_LABELS["cancel" if action == "approve" else "approve"]} instead</a></p>"""
    return _PAGE.format(title=escape(about["title"]), body=body)


def pointer(run: uuid.UUID) -> str:
    """Where links to a run lead, which anybody may open: how to see it, and nothing about it."""
    body = f"""<h1>A run of Hubflow</h1>
<p>Whoever has a token of its tenant sees it with</p>
<p><code>hubflow run show {run}</code></p>
<p>or, for programs, at <code>/api/v1/runs/{run}</code>.</p>"""
    return _PAGE.format(title="A run of Hubflow", body=body)


def answer(code: str, text: str) -> str:
    """What came of it, or why it cannot be."""
    title = _TITLES.get(code, "This did not work")
    sentence = text[:1].upper() + text[1:]
    end = "" if sentence.endswith((".", "`")) else "."
    return _PAGE.format(
        title=escape(title), body=f'<h1>{escape(title)}</h1>\n<p role="status">{escape(sentence)}{end}</p>'
    )
