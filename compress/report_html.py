"""The bundle's `report.html`: one file, no script, no outside request."""

import re

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bundle import Manifest
from compress.report_labels import LONGEST_NAME, cut
from compress.report_page import Page
from compress.story import Story

_TEMPLATE = "report.html.jinja"
# what no browser shows, or what would turn the text around it: control characters, halves of pairs, overrides
_UNSHOWN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def report_html(manifest: Manifest, story: Story) -> str:
    """Return the page; the same manifest and story give the same page."""
    environment = Environment(
        loader=PackageLoader("compress", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: shown(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    environment.filters["name"] = lambda name: cut(str(name), LONGEST_NAME)
    return environment.get_template(_TEMPLATE).render(Page(manifest, story).content()) + "\n"


def shown(text: str) -> str:
    """Return a text in which each character that cannot be shown as it is has become �."""
    return _UNSHOWN.sub("\ufffd", text)
