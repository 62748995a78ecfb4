"""Makes the table of `zoo/face/reference.py`: an average face in three dimensions.

    python tests/reference/make_face_reference.py

It prints the landmarks of the average of `train.data.faces.model`, in shares
of an aligned crop's side, which `zoo/face/reference.py` holds.
"""

import numpy as np

from train.data.faces.model import Expression, average_person, landmarks, locate

# Units of a head to the crop's side, and what is in its middle.
SIDE, CENTER = 2.3, (0.0, 0.32)
# Points around the face, x and y in units of a head; those of the neck and beside the
# head are not on its surface and have a depth of their own.
ON_HEAD = [(-0.6, -0.9), (0.0, -0.9), (0.6, -0.9)]
AROUND = [
    *((x, y, 0.0) for x in (-1.3, 1.3) for y in (-0.9, -0.1, 0.8)),
    *((x, 1.6, 0.1) for x in (-1.3, 0.0, 1.3)),
]


def main() -> None:
    """Prints both tables."""
    person = average_person()
    # A mouth that is a little open, or its inner landmarks would coincide.
    points = landmarks(person, Expression(mouth=0.3))
    on_head = []
    for x, y in ON_HEAD:
        share = 1 - (y / -1.5) ** 2.4
        u = np.arcsin(x / (person.width * share ** (1 / 2.4)))
        on_head.append(locate(np.array(u), np.array(y), person))
    anchors = np.array([*on_head, *AROUND])
    for name, table in (("_LANDMARKS", points), ("_ANCHORS", anchors)):
        shares = (table - [*CENTER, 0]) / SIDE + [0.5, 0.5, 0]
        print(f"{name} = (")
        for row in shares:
            print("    (" + ", ".join(f"{value + 0.0:.4f}" for value in row) + "),")
        print(")")


if __name__ == "__main__":
    main()
