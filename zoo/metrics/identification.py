"""Metrics of face identification: finding the person of a probe in a gallery.

Larger scores mean more similar faces. If the gallery has several pictures of a person,
the largest score is used.
"""

import numpy as np

Array = np.ndarray


def person_scores(scores: Array, gallery: Array) -> tuple[Array, Array]:
    """Computes the largest score of each person's pictures in a gallery.

    Args:
      scores: float [P, G], scores of each probe and each picture of the gallery.
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
      float64 [N]: at r - 1 the fraction of probes whose person is among the r best.
      People with the same score as the true person are ranked before that person.

    Raises:
      ValueError: There is no probe, or the person of a probe is not in the gallery.
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
    """Returns the rank of each probe's person, starting at 1; 0 for unknown people."""
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
      far: False accept rate, the fraction of probes of unknown people, 0 to 1, with a
        score of at least the threshold.

    Returns:
      The fraction of the other probes whose person is ranked first, with a score of at
      least the threshold.

    Raises:
      ValueError: All people are known, or none, or `far` is out of range.

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
    unknown = np.sort(top[~known])[::-1]
    allowed = int(np.floor(far * len(unknown) + 1e-9))
    # The largest score that must be rejected.
    threshold = unknown[allowed] if allowed < len(unknown) else -np.inf
    return float(((ranks == 1) & (top > threshold))[known].mean())
