"""Matplotlib's figures as inline SVG that takes its colors from the page and refers to nothing else."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup
from matplotlib import style
from matplotlib.figure import Figure

INK, SOFT, GRID, PAPER = "#010101", "#010102", "#010103", "#010104"
SERIES = tuple(f"#0101{number:02x}" for number in range(16, 22))
"""Colors that nothing else has, so that each can be replaced by the page's own."""
_VARIABLES = {INK: "ink", SOFT: "soft", GRID: "grid", PAPER: "paper"} | {
    color: f"c{number}" for number, color in enumerate(SERIES)
}
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_HREF = f"{{{_XLINK}}}href"
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be searched, and the reader's fonts draw it
    "svg.hashsalt": "limbeck",  # else ids differ from run to run
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw with the page's style, whatever the user's own matplotlib settings are."""
    with style.context(_STYLE, after_reset=True):
        yield


def inline(figure: Figure, name: str, label: str) -> Markup:
    """Return a figure as an `<svg>` element; `name` keeps its ids apart from those of others on the page.

    `label` is what is read out in its place.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(buffer.getvalue())  # noqa: S314 - matplotlib wrote it a moment ago
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    _rename(root, name)
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    root.attrib |= {"role": "img", "aria-label": label}
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    text = ElementTree.tostring(root, encoding="unicode")
    pattern = re.compile("|".join(_VARIABLES))
    return Markup(pattern.sub(lambda found: f"var(--{_VARIABLES[found[0]]})", text))  # noqa: S704 - ElementTree escaped it


def _rename(root: ElementTree.Element, name: str) -> None:
    """Keep the ids that are referred to, each with the figure's name before it."""
    referred = {element.attrib[_HREF][1:] for element in root.iter() if _HREF in element.attrib}
    for element in root.iter():
        referred.update(re.findall(r"url\(#([^)]+)\)", " ".join(element.attrib.values())))
    for element in root.iter():
        for key, value in list(element.attrib.items()):
            if key == "id":
                if value in referred:
                    element.attrib["id"] = f"{name}-{value}"
                else:
                    del element.attrib["id"]
            elif key == _HREF:
                del element.attrib[_HREF]
                element.attrib["href"] = f"#{name}-{value[1:]}"
            elif "url(#" in value:
                element.attrib[key] = value.replace("url(#", f"url(#{name}-")
