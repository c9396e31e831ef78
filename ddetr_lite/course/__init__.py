"""What the notebooks need beyond the package: checks that diagnose, one's own parts, glossary, equation map.

    course.check("name", function)   is it right, and if not, which mistake is it?
    course.hint("name")              one hint more with every call
    course.use("name", function)     check it, then let the package run on it; kept in my_parts/
    course.reset()                   the package's own functions again
    course.restore()                 in a later notebook: plug in what was kept and still passes
    course.parts()                   which parts are the package's, which are yours
    course.symbols(...), course.terms(...), course.equation_map(...)
    course.architecture("detr")      a block diagram
    course.picture(), course.detector(), course.followed_query()   what the whole course follows
    course.run_log("shapes")      a committed run, line by line

For the notebooks, and for teachers (`ddetr-lite course`): no other part of the package imports it.
"""

from ddetr_lite.course.architectures import architecture
from ddetr_lite.course.checking import Verdict, check
from ddetr_lite.course.equations import equation_map
from ddetr_lite.course.following import FollowedQuery, followed_query
from ddetr_lite.course.glossary import symbols
from ddetr_lite.course.hints import hint
from ddetr_lite.course.plugging import parts, reset, restore, use
from ddetr_lite.course.scene import Scene, picture
from ddetr_lite.course.shipped import checkpoint, detector, run_log
from ddetr_lite.course.terms import terms

__all__ = [
    "FollowedQuery",
    "Scene",
    "Verdict",
    "architecture",
    "check",
    "checkpoint",
    "detector",
    "equation_map",
    "followed_query",
    "hint",
    "parts",
    "picture",
    "reset",
    "restore",
    "run_log",
    "symbols",
    "terms",
    "use",
]
