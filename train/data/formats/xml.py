"""XML files of strangers: elements with the line they stand in, and nothing more.

A document type, which can make a small file grow without bounds or name other files, is
refused.
"""

import codecs
import re
from typing import NamedTuple, NoReturn
from xml.parsers import expat

LARGEST = 1e8  # number of pixels
_DEEPEST = 100  # elements within one another
_ENCODING = re.compile(rb"""<\?xml[^>]*?\sencoding\s*=\s*["']([^"']*)["']""")
# As browsers do: what is written as one of these is often one that has more characters.
_LARGER = {
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "big5": "big5hkscs",
}


class Element(NamedTuple):
    """One element.

    Attributes:
      name: Of its tag.
      where: File and line, for errors.
      children: The elements directly within.
      texts: Its own text, in parts.
    """

    name: str
    where: str
    children: list["Element"]
    texts: list[str]

    def find_all(self, name: str) -> list["Element"]:
        """Returns the children of a name."""
        return [child for child in self.children if child.name == name]

    def find(self, name: str) -> "Element | None":
        """Returns the first child of a name, or None."""
        return next((child for child in self.children if child.name == name), None)

    def text(self, name: str) -> str:
        """Returns the text of the first child of a name.

        Raises:
          ValueError: There is no such child, or it has no text.
        """
        child = self.find(name)
        text = "" if child is None else "".join(child.texts).strip()
        if not text:
            raise ValueError(f"{self.where}: <{self.name}> has no <{name}>.")
        return text

    def number(self, name: str, least: float = -LARGEST) -> float:
        """Returns the text of the first child of a name, a number of pixels.

        Raises:
          ValueError: There is none, or it is not a number from `least` to `LARGEST`.
        """
        text = self.text(name)
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if not least <= number <= LARGEST:
            shown = text if len(text) < 40 else f"{text[:40]}..."
            raise ValueError(
                f"{self.find(name).where}: <{name}> is {shown!r}, expected a number "
                f"of pixels, {least:g} to {LARGEST:g}."
            )
        return number


def parse_xml(data: bytes, file: str) -> Element:
    """Reads a file.

    Args:
      data: Its contents.
      file: What to call it in errors.

    Returns:
      The outermost element.

    Raises:
      ValueError: It is not XML, has an encoding that Python does not have, has a
        document type, or is nested too deeply; file and line are named.
    """
    text = _decode(data, file)
    parser = expat.ParserCreate()
    top = Element("", file, [], [])
    stack = [top]

    def where() -> str:
        return f"{file}:{parser.CurrentLineNumber}"

    def start(name: str, attributes: dict[str, str]) -> None:
        del attributes
        if len(stack) > _DEEPEST:
            raise ValueError(f"{where()}: elements are nested {_DEEPEST} deep.")
        element = Element(name, where(), [], [])
        stack[-1].children.append(element)
        stack.append(element)

    def end(name: str) -> None:
        del name
        stack.pop()

    def refuse(*declaration: object) -> NoReturn:
        del declaration
        raise ValueError(f"{where()}: a document type (<!DOCTYPE ..>) is not read.")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = lambda text: stack[-1].texts.append(text)
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(text, True)
    except expat.ExpatError as error:
        message = expat.ErrorString(error.code)
        raise ValueError(f"{file}:{error.lineno}: not XML ({message}).") from error
    except (LookupError, ValueError) as error:
        # Those of this function begin with the file's name; expat's do not.
        if str(error).startswith(file):
            raise
        raise ValueError(f"{file}: not XML ({error}).") from error
    return top.children[0]


def _decode(data: bytes, file: str) -> bytes | str:
    """Decodes a file of a stated encoding; without one the parser finds out."""
    found, marked = _ENCODING.match(data), data.startswith(codecs.BOM_UTF8)
    if not found and not marked:
        return data  # UTF-8, or UTF-16 with its mark
    name = "utf-8-sig" if marked else found[1].decode("ascii", "replace")
    try:
        codec = codecs.lookup(name).name
        if codec.startswith(("utf-16", "utf-32")):
            codec = "utf-8"  # what could be read so far is not what it says
        return data.decode(_LARGER.get(codec, codec))
    # Some codecs are not of texts, and a few raise errors of their own.
    except Exception as error:
        raise ValueError(
            f"{file}: cannot be read as encoding {name!r} ({error}); save it as UTF-8."
        ) from error
