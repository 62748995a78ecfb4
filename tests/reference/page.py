"""Reads a page of HTML strictly."""

from html.parser import HTMLParser

import pytest

VOID = {"meta", "br", "img", "wbr"}
# With newer pyparsing, matplotlib 3.10.0 warns when it is imported.
old_matplotlib = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Page(HTMLParser):
    """Parses a page strictly: every tag must be closed, in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.broken = False
        self.feed(text)
        self.close()
        assert not self.open, f"unclosed: {self.open}"

    def handle_starttag(self, tag, attrs):
        assert len(attrs) == len(dict(attrs)), f"<{tag}> repeats an attribute"
        self.tags.append((tag, dict(attrs)))
        self.broken = tag == "wbr"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        if self.tags and self.tags[-1][0] == "wbr" and self.broken:
            self.words[-1] += data  # one word, which may break here
        else:
            self.words.append(data)
        self.broken = False

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())  # no-break spaces, too

    def all(self, name: str) -> list[dict]:
        return [attrs for tag, attrs in self.tags if tag == name]
