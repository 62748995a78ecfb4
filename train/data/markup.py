"""XML files of strangers: elements with the line they stand in, and nothing more.

A document type, which can make a small file grow without bounds or name other files, is
refused.
"""

from typing import NamedTuple, NoReturn
from xml.parsers import expat

_DEEPEST = 100  # elements within one another


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

    def number(self, name: str) -> float:
        """Returns the text of the first child of a name, a finite number.

        Raises:
          ValueError: There is none, or it is not a number.
        """
        text = self.text(name)
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if not abs(number) < float("inf"):
            raise ValueError(
                f"{self.find(name).where}: <{name}> is {text!r}, expected a number."
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
      ValueError: It is not XML, has a document type, or is nested too deeply; file and
        line are named.
    """
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
        parser.Parse(data, True)
    except expat.ExpatError as error:
        message = expat.ErrorString(error.code)
        raise ValueError(f"{file}:{error.lineno}: not XML ({message}).") from error
    return top.children[0]
