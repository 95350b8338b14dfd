"""How names are shown: any of them in one line that can be written, and no two alike."""

import ast
import os
import subprocess
import unicodedata

import pytest

from jeffnet.text.names import (
    counted,
    distinguishable,
    listed,
    markdown,
    portable,
    printable,
    shell_word,
    utf8,
    wrapped,
)

NOT_UTF8 = os.fsdecode(b"caf\xe9")
ODD = [
    ("a\nb", r"a\nb"),
    ("\x1b[2J", r"\x1b[2J"),
    ("tab\t\r\x7f\x85", r"tab\t\r\x7f\x85"),
    ("\u2028\u202egnp.exe", r"\u2028\u202egnp.exe"),
    (NOT_UTF8, r"caf\xe9"),
    ("\ud83d", r"\ud83d"),
]


@pytest.mark.parametrize(("name", "shown"), ODD)
def test_odd_characters_become_escapes_in_one_line_of_utf8(name: str, shown: str):
    assert printable(name) == shown
    assert len(shown.encode().splitlines()) == 1


@pytest.mark.parametrize("name", ["plain", r"C:\new", "日本 Ä $x$", "क्\u200dष", ""])
def test_other_text_is_what_it_was(name: str):
    assert printable(name) == utf8(name) == name


def test_for_utf8_only_what_is_none_changes():
    assert utf8(f"a\n\x1b{NOT_UTF8}") == "a\n\x1bcaf\\xe9"


def test_one_of_a_thing_is_no_plural():
    counts = [(1, "epoch"), (0, "step"), (10, "validation picture"), (1, "class"), (2, "class"), (3, "batch")]
    expected = ["1 epoch", "0 steps", "10 validation pictures", "1 class", "2 classes", "3 batches"]
    assert [counted(number, noun) for number, noun in counts] == expected


def test_a_name_is_wrapped_after_its_characters_became_escapes():
    assert wrapped("\n" * 20, 8, 1) == r"\n\n\n\… ".strip()
    assert wrapped("x" * 30, 8, 2) == "x" * 8 + "\n" + "x" * 7 + "…"
    assert wrapped("x" * 8, 8) == "x" * 8
    assert wrapped("American Staffordshire terrier", 22) == "American Staffordshire\nterrier"
    assert wrapped("日" * 9, 8, 2) == "日" * 4 + "\n" + "日" * 3 + "…"
    assert wrapped("日 of 猫", 6) == "日 of\n猫"


def test_a_portable_name_has_no_folders_of_this_machine():
    private = {"/secret/place/flowers/": "flowers", "~/flowers": "flowers", "/": "/"}
    public = ("hf:owner/name", "tfds:imagenet2012", "pictures/flowers", "https://a/b.npz", "digits", "")
    assert {name: portable(name) for name in (*private, *public)} == private | {name: name for name in public}


def test_markdown_shows_what_it_is_given():
    assert markdown("$a|b$ `c` <i> [d](e)\n") == r"\$a\|b\$ \`c\` \<i\> \[d\](e)\\n"


@pytest.mark.parametrize("name", ["plain", "two words", "it's", "a\nb\\'$x", NOT_UTF8, "-\x01"])
def test_a_word_of_the_shell_means_the_name(name: str):
    done = subprocess.run(["bash", "-c", f"printf %s {shell_word(name)}"], capture_output=True, check=True)
    assert os.fsdecode(done.stdout) == name


@pytest.mark.parametrize(
    ("name", "other"),
    [
        (unicodedata.normalize("NFD", "café"), "café"),
        ("café", unicodedata.normalize("NFD", "café")),
        ("cat ", "cat"),
        ("cat", "cat\u200b"),
        ("c\u0430t", "cat"),
        ("cat", "c\u0430t"),
        ("x-ray", "x\u2011ray"),
        ("cl0ud", "clOud"),
    ],
)
def test_names_that_only_look_the_same_are_shown_with_their_difference(name: str, other: str):
    (shown,) = distinguishable([name], ["dog", other])
    assert shown.isascii()
    first, _, second = shown.partition(" (which only looks like ")
    assert (ast.literal_eval(first), ast.literal_eval(second.removesuffix(")"))) == (name, other)


def test_names_that_are_there_or_look_like_none_are_shown_as_they_are():
    assert distinguishable(["café", "猫", "a\n"], ["café", "cafe", "狗"]) == ["café", "猫", r"a\n"]


def test_long_lists_are_cut_and_twins_told_apart():
    assert listed(["a", "b"]) == "a, b" and listed(list("abcdefg")) == "a, b, c, d, e and 2 more"
    assert listed(["a\n", "b", "c"], 1) == r"a\n and 2 more"
    assert "only looks like" in listed(["cafe\u0301"], beside=["caf\xe9"])
