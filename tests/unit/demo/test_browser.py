"""Following a link: what a page shows, and what pressing its button sends."""

from __future__ import annotations

from cli.demo.browser import Button, Page

PAGE = """<!doctype html><html><head><title>No</title><style>p { color: red }</style></head><body>
<h1>Release Waypoint 1.4?</h1><p>run&nbsp;3 &amp; more</p>
<form method="POST" action="/d/abc"><input type="hidden" name="nonce" value="n&quot;1"><textarea name="comment"></textarea>
<button name="action" value="approve">Approve <b>it</b></button>
<input type="submit" name="action" value="Stop"></form></body></html>"""


def test_a_form_is_read_as_a_browser_reads_it() -> None:
    page = Page(PAGE)
    (form,) = page.forms
    assert (form.method, form.action) == ("post", "/d/abc")
    assert form.fields == {"nonce": 'n"1', "comment": ""}, "a button is sent only if it is pressed"
    assert form.buttons == [Button("action", "approve", "Approve it"), Button("action", "Stop", "Stop")]
    assert form.button("stop") is form.buttons[1]


def test_the_text_is_what_people_see() -> None:
    assert Page(PAGE).text == "Release Waypoint 1.4? run 3 & more Approve it"
