"""The examples of the README and the pages run as they are printed; their commands, links and tables are right."""

import pkgutil
import re
import shlex
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jeffnet.arch import zoo
from jeffnet.arch.imagenet import known_classes
from jeffnet.arch.model import Model
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.spec import ModelSpec
from jeffnet.arch.summary import count_parameters
from jeffnet.checkpoints import save_checkpoint
from jeffnet.cli.main import EXIT_CRASH, _parse, main
from jeffnet.cli.train import _pairs
from jeffnet.errors import EndingError, UsageError
from jeffnet.nnx import create_model, from_pretrained
from jeffnet.parallel.distributed import EXIT_LOST
from jeffnet.train.interrupt import EXIT_CODES
from jeffnet.train.recipe import load_recipe, override

pytestmark = pytest.mark.users

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in PAGES}
LINKS = re.compile(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)")
STATUSES = {0, 1, EXIT_CRASH, UsageError.exit_code, EndingError.exit_code, EXIT_LOST, *EXIT_CODES.values()}


@pytest.mark.parametrize("models", ["small", pytest.param("printed", marks=pytest.mark.slow)])
def test_the_python_examples_run_in_order(models, tmp_path, monkeypatch):
    """Pictures are smaller here, for speed, and in `make test` models too; what needs a reader's file is `notest`."""
    monkeypatch.chdir(tmp_path)
    # Nothing but 1x1 convolutions, of which all of this compiles in seconds; as many maps as the printed ones have.
    stages = tuple((f"cn_r1_k1_s{stride}_c8",) for stride in (1, 2, 2, 2, 2))
    model = Model(ModelSpec(stages=stages, stem=8, features=64), Preprocessing(32, 1.0))
    monkeypatch.setitem(zoo.MODELS, "flat", model)
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save("photo.jpg")
    save_checkpoint("flat.safetensors", create_model("flat", rng=9), "flat", classes=known_classes(1000))
    names = {}
    text = "".join(TEXTS[page] for page in ("README.md", "backends.md", "speed.md"))
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        block = block.replace("224, 224", "64, 64").replace('"tf_efficientnet_lite0"', '"flat.safetensors"')
        if models == "small":
            block = re.sub('"((tf_)?efficientnet_b0|mobilenetv3_small_100)"', '"flat"', block)
        exec(compile(block, "README.md, docs/backends.md and docs/speed.md", "exec"), names)
    assert names["logits"].shape == (2, 1000)
    assert [level.shape[1] for level in names["maps"]] == [16, 8, 2]
    assert names["pooled"].shape == (2, 64 if models == "small" else 1280)
    unfused_logits = names["model"].apply(names["variables"], names["images"])
    np.testing.assert_allclose(names["fused_logits"], unfused_logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(names["loaded_logits"], names["fused_logits"])
    for backend in ("nnx", "objax", "functional", "converted", "served"):
        assert names[f"{backend}_logits"].shape == (2, 10)
    np.testing.assert_allclose(names["served_logits"], names["nnx_logits"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(names["converted_logits"], names["nnx_logits"], rtol=1e-4, atol=1e-5)
    assert np.isfinite([float(names["nnx_loss"]), float(names["objax_value"])]).all()
    for name in ("trained.safetensors", "trained.msgpack"):
        _, card = from_pretrained(tmp_path / name, "flat" if models == "small" else "mobilenetv3_small_100")
        assert card.num_classes == 10


def test_the_python_examples_of_the_classifier_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stages = tuple((f"cn_r1_k1_s{stride}_c8",) for stride in (1, 2, 2, 2, 2))
    model = Model(ModelSpec(stages=stages, stem=8, features=64), Preprocessing(32, 1.0))
    monkeypatch.setitem(zoo.MODELS, "flat", model)
    for number in range(8):
        path = Path("pictures", ("train", "val")[number // 4], ("cat", "dog")[number % 2], f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 50, 3), 30 * number, np.uint8)).save(path)
    Image.open(path).save("photo.jpg")
    save_checkpoint("flat.safetensors", create_model("flat", rng=9), "flat", classes=known_classes(1000))
    names = {}
    for block in re.findall(r"```python\n(.*?)```", TEXTS["python.md"], re.DOTALL):
        block = block.replace("tf_efficientnet_lite0", "flat.safetensors").replace("epochs=5", "epochs=1")
        exec(compile(re.sub('"(efficientnet_b0)"', '"flat"', block), "docs/python.md", "exec"), names)
    assert names["answers"].probabilities.shape == (2, 1000)
    assert names["embedding"].shape == (64,) and [each.shape for each in names["maps"]] == [(2, 2, 8), (1, 1, 8)]
    assert names["found"].vectors.shape == (4, 64)
    assert names["again"].classes == names["card"].classes == ("cat", "dog")
    assert names["images"].shape == (1, 32, 32, 3)
    assert names["inputs"].shape == (4, 32, 32, 3) and names["state"]["position"] == 8 and names["counted"] == 4


COMMANDS = [
    line
    for text in TEXTS.values()
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    for line in re.findall(r"^jeffnet .*$", block.replace("\\\n", " "), re.MULTILINE)
]


@pytest.mark.parametrize("line", dict.fromkeys(COMMANDS))
def test_the_commands_parse(line):
    words = shlex.split(line, comments=True)
    options = _parse(words[1:])
    assert callable(options.run)
    if getattr(options, "config", None):
        assert override(load_recipe(options.config), _pairs(options.overrides))


def test_the_table_of_models_is_what_the_command_prints(capsys):
    for name, options in (("architectures", ()), ("weights", ("--tags",))):
        assert main(["list", "--markdown", *options]) == 0
        table = re.search(rf"<!-- {name} -->\n(.*?)<!-- end of {name} -->", TEXTS["models.md"], re.DOTALL)[1]
        assert table == capsys.readouterr().out, f"jeffnet list --markdown {' '.join(options)}"
    commands = re.findall(r"`(jeffnet validate .*?)`", table)
    scored = [name for name in zoo.list_models(tags=True) if zoo.find_model(name).weights.top1]
    assert [line.split()[-1] for line in commands] == scored
    for line in commands[:3]:
        test_the_commands_parse(line)


def test_the_table_of_families_is_of_the_whole_zoo():
    """Every model is in one family, and the figures are those of the family's models."""
    table = TEXTS["models.md"].partition("| family | names |")[2].partition("\n\n")[0]
    shown = []
    for line in table.splitlines()[2:]:
        _, patterns, *figures = (cell.strip() for cell in line.strip("|").split("|"))
        names = [name for pattern in patterns.split(", ") for name in zoo.list_models(pattern.strip("`"))]
        millions = [count_parameters(zoo.model_plan(name)) / 1e6 for name in names]
        scores = {
            other: zoo.find_model(other).weights.top1 or 0.0
            for name in names
            for other in zoo.list_models(name, tags=True)
        }
        best = max(scores, key=lambda other: scores[other])
        sizes = f"{min(millions):.1f} to {max(millions):.1f}"
        assert figures == [str(len(names)), sizes, f"{scores[best]:.2f}", f"`{best}`"], line
        shown += names
    assert sorted(shown) == zoo.list_models()
    for number, what in (
        (len(zoo.list_models()), "models with"),
        (len(zoo.list_models(tags=True)), "published sets of weights"),
    ):
        for page in ("README.md", "models.md", "index.md"):
            assert f"{number} {what}" in TEXTS[page].replace("\n", " "), page


def test_the_table_of_statuses_has_those_that_commands_end_with():
    table = TEXTS["command_line.md"].partition("| status | meaning |")[2].partition("\n\n")[0]
    listed = {
        int(code): text
        for codes, text in re.findall(r"^\| ([\d, ]+) \| (.*) \|$", table, re.M)
        for code in codes.split(",")
    }
    assert {*listed} == STATUSES
    assert listed[UsageError.exit_code].startswith("wrong usage") and "SIGTERM" in listed[EXIT_CODES[signal.SIGTERM]]


def _anchors(text):
    """As GitHub makes them of headings."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.M)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = TEXTS[page.name]
    for name, anchor in LINKS.findall(text):
        target = page.parent / name if name else page
        assert target.exists(), name
        if anchor:
            assert anchor in _anchors(target.read_text(encoding="utf-8")), (name, anchor)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_modules_and_files_that_pages_name_exist(page):
    text = page.read_text(encoding="utf-8")
    paths = re.findall(r"(?<![\w/~.])(?:jeffnet|tests|benchmarks)/[\w/]+(?:\.\w+)?", text)
    assert [path for path in paths if "NAME" not in path and not (ROOT / path).exists()] == []
    for name in set(re.findall(r"(?<!/)\bjeffnet(?:\.[a-zA-Z]\w*)+", text)):
        assert pkgutil.resolve_name(name) is not None


def test_a_wrong_anchor_is_noticed():
    assert _anchors("# When it fails: 2 `x`\n\ntext") == {"when-it-fails-2-x"}
    assert LINKS.findall("[a](#b), [c](d.md), [e](d.md#f), [g](https://h)") == [("", "b"), ("d.md", ""), ("d.md", "f")]
