"""XML annotations, parsed by defusedxml into elements that know their lines.

Files are not trusted: a document type declaration, which can expand a small file
without bound or refer to other files, is an error.
"""

import codecs
import io
import re
from typing import NamedTuple
from xml.sax import SAXParseException
from xml.sax.handler import ContentHandler
from xml.sax.xmlreader import AttributesImpl, InputSource, Locator

from defusedxml import DTDForbidden, sax

MAX_COORDINATE = 1e8  # the largest coordinate or side of an image in an annotation
MAX_DEPTH = 100  # nested elements
_ENCODING = re.compile(rb"""<\?xml[^>]*?\sencoding\s*=\s*["']([^"']*)["']""")
# As in browsers: files that declare one of these often use a superset of it.
_SUPERSETS = {
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "big5": "big5hkscs",
}


class Element(NamedTuple):
    """An XML element.

    Attributes:
      name: The name of its tag.
      where: The file and line of its start tag, for errors.
      children: The elements that it contains directly.
      texts: The parts of its own text.
    """

    name: str
    where: str
    children: list["Element"]
    texts: list[str]

    def find_all(self, name: str) -> list["Element"]:
        """Returns all children with a name."""
        return [child for child in self.children if child.name == name]

    def find(self, name: str) -> "Element | None":
        """Returns the first child with a name, or None."""
        return next((child for child in self.children if child.name == name), None)

    def text(self, name: str) -> str:
        """Returns the text of the first child with a name.

        Raises:
          ValueError: There is no such child, or it has no text.
        """
        child = self.find(name)
        text = "" if child is None else "".join(child.texts).strip()
        if not text:
            raise ValueError(f"{self.where}: <{self.name}> has no <{name}>.")
        return text

    def number(self, name: str, least: float = -MAX_COORDINATE) -> float:
        """Returns the number of pixels in the first child with a name.

        Raises:
          ValueError: There is no such child, or its text is not a number from `least`
            to `MAX_COORDINATE`.
        """
        text = self.text(name)
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if not least <= number <= MAX_COORDINATE:
            shown = text if len(text) < 40 else f"{text[:40]}..."
            raise ValueError(
                f"{self.find(name).where}: <{name}> is {shown!r}, expected a number "
                f"of pixels, {least:g} to {MAX_COORDINATE:g}."
            )
        return number


class _TreeBuilder(ContentHandler):
    """Builds a tree of elements that know their lines.

    Args:
      file: Name of the file in errors.
    """

    def __init__(self, file: str):
        super().__init__()
        self.file = file
        self.root = Element("", file, [], [])
        self._open = [self.root]

    def setDocumentLocator(self, locator: Locator) -> None:
        self._locator = locator

    def where(self) -> str:
        return f"{self.file}:{self._locator.getLineNumber()}"

    def startElement(self, name: str, attributes: AttributesImpl) -> None:
        if len(self._open) > MAX_DEPTH:
            raise ValueError(f"{self.where()}: elements are nested {MAX_DEPTH} deep.")
        element = Element(name, self.where(), [], [])
        self._open[-1].children.append(element)
        self._open.append(element)

    def endElement(self, name: str) -> None:
        self._open.pop()

    def characters(self, text: str) -> None:
        self._open[-1].texts.append(text)


def parse_xml(data: bytes, file: str) -> Element:
    """Parses an XML file.

    Args:
      data: Contents of the file.
      file: Name of the file in errors.

    Returns:
      The root element.

    Raises:
      ValueError: The file is not XML, has an encoding that Python does not know, has a
        document type, or is nested too deeply; the message names the file and the line.
    """
    text, source, builder = _decode(data, file), InputSource(), _TreeBuilder(file)
    if isinstance(text, str):
        source.setCharacterStream(io.StringIO(text))
    else:
        source.setByteStream(io.BytesIO(text))
    parser = sax.make_parser()
    parser.forbid_dtd = True
    parser.setContentHandler(builder)
    try:
        parser.parse(source)
    except DTDForbidden as error:
        message = "a document type (<!DOCTYPE ..>) is not read."
        raise ValueError(f"{builder.where()}: {message}") from error
    except SAXParseException as error:
        line, message = error.getLineNumber(), error.getMessage()
        raise ValueError(f"{file}:{line}: not XML ({message}).") from error
    except (LookupError, ValueError) as error:
        # Errors of the builder begin with the name of the file.
        if str(error).startswith(file):
            raise
        raise ValueError(f"{file}: not XML ({error}).") from error
    return builder.root.children[0]


def _decode(data: bytes, file: str) -> bytes | str:
    """Decodes a file with a declared encoding; otherwise the parser detects it."""
    found, marked = _ENCODING.match(data), data.startswith(codecs.BOM_UTF8)
    if not found and not marked:
        return data  # UTF-8, or UTF-16 with a byte order mark
    name = "utf-8-sig" if marked else found[1].decode("ascii", "replace")
    try:
        codec = codecs.lookup(name).name
        if codec.startswith(("utf-16", "utf-32")):
            codec = "utf-8"  # the declaration was readable as ASCII
        return data.decode(_SUPERSETS.get(codec, codec))
    # Some codecs are not for text, and a few raise errors of their own.
    except Exception as error:
        raise ValueError(
            f"{file}: cannot be read as encoding {name!r} ({error}); save it as UTF-8."
        ) from error
