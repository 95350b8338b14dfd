"""docs/models.md on architectures of one's own: its example runs, and its tables say what the code does."""

import inspect
import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

import jeffnet.arch.grammar as grammar
from jeffnet.arch import zoo
from jeffnet.arch.grammar import parse_block
from jeffnet.arch.spec import ModelSpec, SqueezeRule
from jeffnet.arch.summary import array_specs
from jeffnet.errors import ArchitectureError

PAGE = (Path(__file__).parents[1] / "docs" / "models.md").read_text(encoding="utf-8")
# A number, a list of sizes, a code.
VALUES = {"k": "3", "s": "1", "e": "2", "se": "0.25", "n": "re", "a": "1", "p": "1", "v": "2"}


def _between(name):
    return re.search(rf"<!-- {name} -->\n(.*?)<!-- end of {name} -->", PAGE, re.DOTALL)[1]


def _rows(text):
    return [line for line in text.splitlines() if line.startswith("| `")]


def _kinds():
    """The table of kinds in the docstring, with their fields."""
    meanings = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", grammar.__doc__.partition("| field |")[0], re.MULTILINE))
    assert meanings.keys() == grammar._KINDS.keys()
    lines = ["| kind | block | needs | may have | residual |", "|---|---|---|---|---|"]
    for name, kind in grammar._KINDS.items():
        needs, may = (
            " ".join(f"`{key}`" for key in grammar._FIELDS if key in keys) for keys in (kind.required, kind.optional)
        )
        lines.append(f"| `{name}` | {meanings[name]} | {needs} | {may} | {'yes' if kind.skip else 'if `skip`'} |")
    return "\n".join(lines)


def _attributes(kind, prefix=""):
    """The attributes that a class's docstring describes, with their defaults."""
    described = inspect.getdoc(kind).partition("Attributes:\n")[2].partition("\nRaises:")[0]
    meanings = {
        name: " ".join(text.split()).replace("|", "\\|")
        for name, text in re.findall(r"^  (\w+): (.*(?:\n    .*)*)", described, re.MULTILINE)
    }
    assert list(meanings) == [field.name for field in fields(kind)]
    for field in fields(kind):
        default = "" if field.default is MISSING else f"`{field.default!r}`"
        default = "`SqueezeRule()`" if isinstance(field.default, SqueezeRule) else default
        yield f"| `{prefix}{field.name}` | {default} | {meanings[field.name]} |"


def test_the_tables_of_block_strings_are_those_of_the_code():
    fields_of_page = "| field |" + grammar.__doc__.partition("| field |")[2].partition("\n\n")[0]
    assert _between("block strings") == f"{_kinds()}\n\n{fields_of_page}\n"


def test_the_table_of_attributes_is_that_of_the_code():
    lines = [
        "| attribute | default | meaning |",
        "|---|---|---|",
        *_attributes(ModelSpec),
        *_attributes(SqueezeRule, "se."),
    ]
    assert _between("attributes") == "\n".join(lines) + "\n"


def test_every_field_is_described_and_every_example_is_one():
    described, examples = set(), []
    for row in _rows(grammar.__doc__.partition("| field |")[2]):
        names, _, shown = re.match(r"\| (.*?) \| (.*) \|(.*)\|", row).groups()
        described |= set(re.findall(r"`(\w+)`", names))
        examples += re.findall(r"`(.*?)`", shown)
    assert described == {*grammar._FIELDS, "skip", "noskip"}
    for example in examples:
        for part in example.split("_"):
            assert grammar._parse_field("", part)[0] in described


@pytest.mark.parametrize("kind", grammar._KINDS)
def test_a_kind_takes_the_fields_of_its_row_and_no_others(kind):
    row = next(row for row in _rows(_between("block strings")) if row.startswith(f"| `{kind}` "))
    *_, needs, may, residual = (cell.strip() for cell in row.strip("| ").split(" | "))
    needs, may = (re.findall(r"`(\w+)`", cell) for cell in (needs, may))
    values = {key: VALUES.get(key, "1") for key in grammar._FIELDS}
    if kind in ("ds", "dsa", "cn"):
        values["e"] = "1"

    def text(keys):
        return "_".join([kind, *(key + values[key] for key in keys)])

    assert parse_block(text(needs)).skip == (residual == "yes")
    parse_block(text(needs + may))
    for key in needs:
        with pytest.raises(ArchitectureError, match=f"needs field {key}"):
            parse_block(text([other for other in needs if other != key]))
    for key in values.keys() - {*needs, *may}:
        with pytest.raises(ArchitectureError, match=f"has no field {key}"):
            parse_block(text([*needs, key]))


def test_the_example_runs_as_it_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(zoo, "_REGISTERED", {})
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names = {}
    exec(compile(code, "docs/models.md", "exec"), names)
    printed = re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)
    assert capsys.readouterr().out.splitlines() == [line.replace(",", "") for line in printed]
    assert names["card"].spec == names["spec"]
    assert [info.stride for info in names["model"].feature_info] == [2, 4, 8, 16]
    assert any(".attn." in name for name in array_specs(names["model"].plan))
