"""Names of files and classes as messages show them: they may hold any character, and must not mislead a reader."""

import re
import shlex
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import PurePath

# Control characters, which move a terminal's cursor or end a line; what turns the direction of writing; and surrogates,
# which stand for bytes of a file's name that are not UTF-8, and which no file or terminal takes.
_ODD = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_SURROGATES = re.compile("[\ud800-\udfff]")
# What begins something in Markdown wherever it stands; a dollar sign begins a formula.
_MARKDOWN = re.compile(r"[\\`*\[\]<>|$~]")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060-\u2064\ufeff]")
# Letters of other scripts and signs that look like those of ASCII in most fonts.
_LOOK_ALIKES = str.maketrans(
    "АВЕЗКМНОРСТУХЅІЈаеорсухѕіјԁһΑΒΕΖΗΙΚΜΝΟΡΤΥΧονI|1O‐‑‒–—−’‘`",  # noqa: RUF001
    "ABE3KMHOPCTYXSlJaeopcyxsijdhABEZHlKMNOPTYXovlll0------'''",
)


def printable(name: str) -> str:
    r"""A name in one line of text that can be written anywhere: odd characters as Python's escapes, such as `\n`.

    Bytes that are not UTF-8, which Python holds as surrogates, become `\xff`. Other text is what it was, backslashes
    included.
    """
    return _ODD.sub(_escape, name)


def printable_lines(text: str) -> str:
    """A message in as many lines as it has, each `printable`."""
    return "\n".join(map(printable, text.split("\n")))


def utf8(name: str) -> str:
    r"""A name for files in UTF-8, such as CSV: as it is, but for bytes that are not UTF-8, which become `\xff`."""
    return _SURROGATES.sub(_escape, name)


def wrapped(name: str, width: int, most: int = 3) -> str:
    """`printable`, in lines of so many characters; what needs more lines than `most` is cut and ends in `…`.

    Chinese, Japanese and Korean characters and emoji count twice, as wide as they are.
    """
    filled = "".join(f"\0{each}" if unicodedata.east_asian_width(each) in "WF" else each for each in printable(name))
    lines = textwrap.wrap(filled, width)
    if len(lines) > most:
        lines[most - 1 :] = [lines[most - 1][: width - 1] + "…"]
    return "\n".join(lines).replace("\0", "")


def portable(name: str) -> str:
    """The name of a file or folder as it makes sense on another machine: without folders that only this one has.

    Relative paths, addresses and names of the hub and of TensorFlow Datasets are what they were.
    """
    return (PurePath(name).name or name) if PurePath(name).is_absolute() or name.startswith("~") else name


def markdown(name: str) -> str:
    """`printable`, so that Markdown shows it as it is."""
    return _MARKDOWN.sub(r"\\\g<0>", printable(name))


def shell_word(text: str) -> str:
    """A word of a command line for a person to copy, quoted where it must be."""
    if not _ODD.search(text):
        return shlex.quote(text)
    escaped = printable(text.replace("\\", "\\\\")).replace("'", "\\'")
    return f"$'{escaped}'"


def distinguishable(names: Sequence[str], others: Iterable[str]) -> list[str]:
    r"""Names for a message; those that only look like one of `others` are written with escapes, beside it.

    Examples are accents written as one or two characters, trailing spaces, and letters of other scripts:
    `'cafe\u0301' (which only looks like 'caf\xe9')`.
    """
    others = set(others)
    twins = {_look(other): other for other in others}
    return [
        printable(name)
        if name in others or (twin := twins.get(_look(name))) is None
        else f"{name!a} (which only looks like {twin!a})"
        for name in names
    ]


def counted(number: int, noun: str) -> str:
    """A number of things, such as `1 epoch`, `10 epochs` and `2 classes`.

    Args:
      number: of them.
      noun: in the singular.
    """
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun}{'es' if noun.endswith(('s', 'ch')) else 's'}"


def listed(names: Sequence[str], most: int = 5, beside: Iterable[str] = ()) -> str:
    """Names in one line, such as `a, b and 3 more`.

    Args:
      names: any number.
      most: number of names to show.
      beside: other names in the message; those that look the same are told apart.
    """
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(distinguishable(names[:most], beside)) + rest


def _look(name: str) -> str:
    plain = unicodedata.normalize("NFKC", _INVISIBLE.sub("", name))
    return " ".join(plain.translate(_LOOK_ALIKES).split())


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return match[0].encode("unicode_escape").decode()
