"""What several messages say in the same words: how long something takes, and which name was meant."""

from collections.abc import Iterable
from difflib import get_close_matches


def duration(seconds: float) -> str:
    """For people: "40 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def did_you_mean(name: str, known: Iterable[str], most: int = 1, likeness: float = 0.6) -> str:
    """ "did you mean 'circle' or 'cross'?" with the nearest known names, at most so many; "" where none is near.

    likeness: of two names, in 0..1, from which on they are near.
    """
    near = get_close_matches(name, known, n=most, cutoff=likeness)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else ""


def known_names(name: str, known: Iterable[str]) -> str:
    """ "did you mean 'circle'? Known are circle, square", for the end of a message about an unknown name."""
    known = list(known)
    near = did_you_mean(name, known)
    return f"{near} Known are {', '.join(known)}" if near else f"known are {', '.join(known)}"
