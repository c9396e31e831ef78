"""The command `ddetr-lite`: train, evaluate, predict, report, explain, compare, data, convert, bench, prove-resume,
course.

Options are made from dataclasses by tyro. A mistake of the user's is answered with one line and exit code 2.
"""

import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version

from ddetr_lite.cli.benching import bench
from ddetr_lite.cli.converting import convert
from ddetr_lite.cli.data import data
from ddetr_lite.cli.explaining import explain
from ddetr_lite.cli.looking import compare, report
from ddetr_lite.cli.parsing import Mistake
from ddetr_lite.cli.proving import prove_resume
from ddetr_lite.cli.teaching import course
from ddetr_lite.cli.training import train
from ddetr_lite.cli.using import evaluate, predict
from ddetr_lite.wording import did_you_mean

COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "report": report,
    "explain": explain,
    "compare": compare,
    "data": data,
    "convert": convert,
    "bench": bench,
    "prove-resume": prove_resume,
    "course": course,
}


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 where `data check` finds errors, 2 for a mistake of the
    user's, 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if words is None else words)
    try:
        if not words or words[0] in ("-h", "--help"):
            print(_help())
            return 0
        if words[0] == "--version":
            print(f"ddetr-lite {version('ddetr-lite')}")
            return 0
        if words[0] not in COMMANDS:
            hint = did_you_mean(words[0], COMMANDS) or f"choose {', '.join(COMMANDS)}"
            raise Mistake(f"unknown command {words[0]!r}: {hint}")
        COMMANDS[words[0]](words[1:])
    except BrokenPipeError:  # who reads has seen enough, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python would complain at its end
        return 141
    except (Mistake, ValueError, OSError, FloatingPointError) as error:
        print(f"ddetr-lite: {' '.join(_told(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nddetr-lite: stopped; a training run goes on with --resume", file=sys.stderr)
        return 130
    except SystemExit as leaving:  # tyro has shown a page of help, or `data check` has found errors
        return int(leaving.code or 0)
    return 0


def _told(error: BaseException) -> str:
    """What an error says; of one in a loading process not the way that it came, which torch puts before."""
    text = str(error)
    return text.rsplit(f"\n{type(error).__name__}: ", 1)[-1] if text.startswith("Caught ") else text


def _help() -> str:
    lines = ["usage: ddetr-lite COMMAND ...", "", "commands:"]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:<13} {(command.__doc__ or '').strip().splitlines()[0]}")
    return "\n".join([*lines, "", "ddetr-lite COMMAND --help shows the options of one."])
