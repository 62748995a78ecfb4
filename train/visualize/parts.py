"""What the sections of the page share."""

from collections.abc import Sequence

from train.report import Picture, Section, macros

WHOLE = 2048  # no picture is larger


def gallery_section(
    title: str, note: str, pictures: Sequence[Picture], width: int = 480
) -> Section:
    """Makes a section of pictures in columns of about `width` pixels."""
    body = macros.paragraph(note) + macros.gallery(pictures, "wide", width)
    return Section(title, body)
