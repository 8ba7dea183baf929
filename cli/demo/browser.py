"""Follows a link the way a person with a browser does: opens the page, reads it, presses a button of its form."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from urllib.parse import urljoin

import aiohttp

from cli.failure import Failure


@dataclass
class Button:
    """A button that sends its form, with its own name and value."""

    name: str
    value: str
    text: str = ""


@dataclass
class Form:
    """A form of a page. `fields`: what is sent beside the button that is pressed, when nothing is filled in."""

    action: str = ""
    method: str = "get"
    fields: dict[str, str] = field(default_factory=dict)
    buttons: list[Button] = field(default_factory=list)

    def button(self, text: str) -> Button | None:
        """The first button that reads so, in any case."""
        return next((button for button in self.buttons if text.lower() in button.text.lower()), None)


class Page(HTMLParser):
    """The forms and the visible text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.forms: list[Form] = []
        self.text = ""
        self._hidden = 0
        self._button = False
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag in {"style", "script", "head"}:
            self._hidden += 1
        elif tag == "form":
            self.forms.append(Form(values.get("action", ""), values.get("method", "get").lower()))
        elif tag in {"input", "textarea", "button"} and self.forms:
            form = self.forms[-1]
            if tag == "button":
                self._button = True
                form.buttons.append(Button(values.get("name", ""), values.get("value", "")))
            elif values.get("type", "").lower() == "submit":
                form.buttons.append(Button(values.get("name", ""), values.get("value", ""), values.get("value", "")))
            elif values.get("name"):
                form.fields[values["name"]] = values.get("value", "")

    def handle_endtag(self, tag: str) -> None:
        if tag in {"style", "script", "head"}:
            self._hidden -= 1
        elif tag == "button":
            self._button = False

    def handle_data(self, data: str) -> None:
        if self._hidden:
            return
        self.text += f" {data}"
        if self._button and self.forms:
            self.forms[-1].buttons[-1].text += data


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    page: Page


async def open_page(http: aiohttp.ClientSession, url: str) -> Answer:
    """GET, as a browser: asking for HTML, without any token."""
    async with http.get(url, headers={"Accept": "text/html"}) as answer:
        return Answer(answer.status, Page(await answer.text()))


async def press(http: aiohttp.ClientSession, url: str, form: Form, button: Button) -> Answer:
    """Press a button of a form of the page at `url`."""
    if form.method != "post":
        raise Failure(f"the page at {url} has a form that does not post")
    sent = form.fields | ({button.name: button.value} if button.name else {})
    async with http.post(urljoin(url, form.action or url), data=sent, headers={"Accept": "text/html"}) as answer:
        return Answer(answer.status, Page(await answer.text()))
