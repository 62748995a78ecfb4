"""How well scores find the person of a probe among people who are known.

A score is larger, the more alike two faces are. Where the gallery has several pictures
of a person, the best one counts.
"""

import numpy as np

Array = np.ndarray


def person_scores(scores: Array, gallery: Array) -> tuple[Array, Array]:
    """Takes for each person of a gallery the best of its pictures' scores.

    Args:
      scores: float [P, G], of each probe and each picture of the gallery.
      gallery: int [G], the person of each picture.

    Returns:
      Scores float [P, N] and the people int [N], sorted.
    """
    people, column = np.unique(gallery, return_inverse=True)
    best = np.full((len(scores), len(people)), -np.inf)
    for i in range(len(people)):
        best[:, i] = scores[:, column == i].max(1)
    return best, people


def cmc(scores: Array, probes: Array, gallery: Array) -> Array:
    """Computes the cumulative match characteristic of a closed set.

    Args:
      scores: float [P, G].
      probes: int [P], the person of each probe, who is in the gallery.
      gallery: int [G], the person of each picture of the gallery.

    Returns:
      float64 [N]: at r - 1 the part of the probes whose person is among the r best. A
      person who scores as much as the right one comes before.

    Raises:
      ValueError: There is no probe, or one's person is not in the gallery.
    """
    ranks = _ranks(scores, probes, gallery)
    people = len(np.unique(gallery))
    if not len(ranks) or (ranks == 0).any():
        missing = np.unique(np.asarray(probes)[ranks == 0])[:5]
        raise ValueError(
            f"{len(ranks)} probes, of which people {missing.tolist()} are not in the "
            "gallery; expected one or more, and all of them there."
        )
    return np.bincount(ranks, minlength=people + 1)[1:].cumsum() / len(ranks)


def _ranks(scores: Array, probes: Array, gallery: Array) -> Array:
    """The place of each probe's own person, from 1 on; 0 for strangers."""
    best, people = person_scores(np.asarray(scores, np.float64), np.asarray(gallery))
    own = np.asarray(probes)[:, None] == people
    score = np.where(own, best, -np.inf).max(1, keepdims=True)
    return np.where(own.any(1), (best >= score).sum(1), 0)


def dir_at_far(scores: Array, probes: Array, gallery: Array, far: float) -> float:
    """Computes the detection and identification rate of an open set.

    Args:
      scores: float [P, G].
      probes: int [P], the person of each probe; some are not in the gallery.
      gallery: int [G], the person of each picture of the gallery.
      far: Part of the strangers, 0 to 1, for whom somebody's score may be at least the
        threshold.

    Returns:
      The part of the other probes whose own person comes first, with such a score.

    Raises:
      ValueError: There is no stranger, or nobody else, or `far` is out of range.

    Reference:
      Phillips, Grother, Micheals, Evaluation Methods in Face Recognition, 2011.
    """
    if not 0 <= far <= 1:
        raise ValueError(f"far={far} must be between 0 and 1.")
    scores = np.asarray(scores, np.float64)
    ranks = _ranks(scores, probes, gallery)
    known = ranks > 0
    if known.all() or not known.any():
        raise ValueError(
            f"{int(known.sum())} of {len(known)} probes are of people in the gallery; "
            "some must be, and some not."
        )
    top = scores.max(1)
    strangers = np.sort(top[~known])[::-1]
    allowed = int(np.floor(far * len(strangers) + 1e-9))
    # Above the first one that may not pass.
    threshold = strangers[allowed] if allowed < len(strangers) else -np.inf
    return float(((ranks == 1) & (top > threshold))[known].mean())
