"""From words to dataclasses: tyro's work, with one line where a mistake was made."""

import contextlib
import io
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

import tyro
from tyro.conf import arg

Options = TypeVar("Options")

FLAT = arg(name="")  # `--lr`, not `--train.lr`


class Mistake(Exception):
    """What the user should change, in one line."""


def parse(
    kind: type[Options],
    words: list[str],
    program: str,
    extra: tuple[str, ...] = (),
    elsewhere: Mapping[str, str] | None = None,
) -> Options:
    """The options of a dataclass. Raises Mistake in one line where tyro would print a box.

    extra: options that are taken before. elsewhere: options that are none here, and what they belong to.
    """
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            return tyro.cli(kind, args=words, prog=program)
    except SystemExit as leaving:
        if not leaving.code:
            raise
        raise Mistake(_one_line(message.getvalue(), kind, words, program, extra, elsewhere or {})) from None


def _one_line(
    text: str, kind: type, words: list[str], program: str, extra: tuple[str, ...], elsewhere: Mapping[str, str]
) -> str:
    """What tyro says in a box, in one line; for an unknown option the nearest known one."""
    page = io.StringIO()
    with contextlib.redirect_stdout(page), contextlib.suppress(SystemExit):
        tyro.cli(kind, args=["--help"], prog=program)
    known = [*extra, *re.findall(r"(?<![\w-])--[a-z][a-z0-9.-]*", _plain(page.getvalue()))]
    for word in words:
        option = option_of(word)
        if option.startswith("--") and option not in known:
            if option in elsewhere:
                return f"{option} is an option of {elsewhere[option]}, not of this model; `{program} --help` lists all"
            near = get_close_matches(option, known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            return f"unknown option {option}: {hint}`{program} --help` lists all"
    titles = ("Value error", "Invalid choice", "Missing argument", "Required options", "Parsing error")
    lines = [line for line in _plain(text).splitlines() if line not in titles and not line.startswith(program)]
    said = re.split(r" (?:Argument|For full) helptext", " ".join(lines))[0]
    # Of an option that may be left out, tyro says why each of its types does not fit, None's among them.
    said = re.sub(r"no type matching \{None\}\|\{?(.*?)\}? could be .* from \[(.*?)\].*", r"expected \1, got \2", said)
    return said + f"; `{program} --help` lists all options"


def _plain(text: str) -> str:
    """Without colours, frames and empty lines."""
    stripped = (line.strip("│╭╮╰╯─ \t") for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines())
    return "\n".join(line for line in stripped if line)


def at_least(options: object, **bounds: int) -> None:
    """Raise Mistake for an option that is given, and below its bound."""
    for name, least in bounds.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise Mistake(f"--{name} {value} must be at least {least}")


def check_folder_option(folder: Path | None) -> None:
    """Raise Mistake for a --folder that is given, and is none."""
    if folder is not None and not folder.expanduser().is_dir():
        raise Mistake(f"--folder {folder} does not exist")


def take_positional(
    words: list[str], name: str, choices: str, example: str, about: Mapping[str, str] | None = None
) -> tuple[str, list[str]]:
    """The first word, and the others. about: what is said of each choice on the page of help."""
    if not words or words[0].startswith("-"):
        if words and words[0] in ("-h", "--help"):
            lines = [f"  {choice:<13} {what}" for choice, what in (about or {}).items()]
            told = "\n".join([f"{name}:", *lines] if lines else [f"{name}: {choices}"])
            print(f"usage: ddetr-lite {example.split()[0]} {name} [options]\n\n{told}\n")
            print(f"`ddetr-lite {example} --help` lists the options.")
            raise SystemExit(0)
        raise Mistake(f"{name} is missing ({choices}), for example: ddetr-lite {example}")
    return words[0], words[1:]


def option_of(word: str) -> str:
    """The option that a word such as "--lr=1e-4" names, "--lr"; underscores are as good as hyphens."""
    return word.split("=")[0].replace("_", "-")


def take_option(words: list[str], option: str) -> tuple[str | None, list[str]]:
    """The value of `--option value` or `--option=value`, and the other words."""
    for i, word in enumerate(words):
        if option_of(word) == option:
            if "=" in word:
                return word.split("=", 1)[1], words[:i] + words[i + 1 :]
            if i + 1 == len(words) or words[i + 1].startswith("-"):
                raise Mistake(f"{option} needs a value")
            return words[i + 1], words[:i] + words[i + 2 :]
    return None, words


def take_flag(words: list[str], flag: str) -> tuple[bool, list[str]]:
    """Whether `--flag` is among the words, and the other words."""
    left = [word for word in words if option_of(word) != flag]
    return left != words, left


def table(metrics: dict[str, float]) -> str:
    """Metrics in two columns."""
    from ddetr_lite.engine.evaluate import in_words

    return "\n".join(f"  {name:<16} {in_words(value)}" for name, value in metrics.items())
