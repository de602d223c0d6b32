"""A page as html.parser reads it: strict about nesting, which browsers forgive."""

from html.parser import HTMLParser

VOID = {"meta", "br", "hr", "img", "input", "link", "wbr", "source", "base", "col", "embed", "area", "track"}
ACTIVE = {"script", "iframe", "object", "embed", "link", "base", "form", "img", "audio", "video", "foreignobject"}


class Page(HTMLParser):
    """What a page holds; `problems` is empty when it is well formed and nothing in it acts or asks for anything."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.problems: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        """Caption -> rows of cells, the headings first."""
        self.policy = ""
        self.text = ""
        self._open: list[str] = []
        self._ids: list[str] = []
        self._references: list[str] = []
        self._caption = ""
        self._rows: list[list[str]] = []
        self.feed(text)
        self.close()
        self.problems += [f"<{tag}> is not closed" for tag in self._open]
        self.problems += [f"two elements have the id {one}" for one in set(self._ids) if self._ids.count(one) > 1]
        self.problems += [f"{one} refers to nothing" for one in self._references if one[1:] not in self._ids]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._look(tag, attrs)
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self._rows, self._caption = [], ""
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._look(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.problems.append(f"</{tag}> closes nothing, or another element")
        if tag == "table":
            self.tables[self._caption] = self._rows

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            if "url(" in data or "@import" in data:
                self.problems.append("the style asks for something")
            return
        self.text += data
        if "caption" in self._open:
            self._caption += data
        elif {"td", "th"} & set(self._open):
            self._rows[-1][-1] += data

    def _look(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if len(given) < len(attrs):
            self.problems.append(f"<{tag}> has an attribute twice")
        if tag in ACTIVE or "src" in given or any(name.startswith("on") for name in given):
            self.problems.append(f"<{tag}> acts, or asks for something")
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"] or ""
        self._ids += [given["id"]] if given.get("id") else []
        for name in ("href", "xlink:href"):
            if (target := given.get(name)) is not None:
                self._refer(target)
        for value in given.values():
            for part in (value or "").split("url(")[1:]:
                self._refer(part.partition(")")[0])

    def _refer(self, target: str) -> None:
        if target.startswith("#"):
            self._references.append(target)
        else:
            self.problems.append(f"it refers to {target}")
