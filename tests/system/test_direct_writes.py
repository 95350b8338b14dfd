"""All files are written by `jeffnet.system.files`: found in the sources, whatever else writes needs a reason here."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import jeffnet

PACKAGE = Path(jeffnet.__file__).parent
ATOMIC = {"written_atomically", "partial_folder"}
WRITERS = {
    "rename", "save", "save_file", "savefig", "savez", "savez_compressed", "symlink_to", "touch", "truncate",
    "write_bytes", "write_text",
}  # fmt: skip

CALLER = "writes the path that its caller got from `written_atomically`"
TEMPORARY = "in a folder of temporary files, which nobody else reads"
MEMORY = "in memory"
NO_FILE = "a pipe or a device, not a file"
ORBAX = "Orbax names a checkpoint when it is complete, through `move_durably`"
REASONS = {
    "prepare: (folder / 'card.json').write_text": TEMPORARY,
    "prepare: np.save": TEMPORARY,
    "timm_model: save_file": TEMPORARY,
    "serve: np.save": TEMPORARY,
    "read: shutil.copyfileobj": TEMPORARY,
    "write: checkpointer.save": CALLER,
    "write: open": CALLER,
    "tflite_archive: zipfile.ZipFile": MEMORY,
    "write: np.savez": CALLER,
    "_write_npz: zipfile.ZipFile": CALLER,
    "_write_npz: archive.open": CALLER,
    "_write_npy: path.open": CALLER,
    "_write_npy: path.with_suffix(_BESIDE_NPY).write_text": CALLER,
    "write: torch.save": CALLER,
    "write: model.save": CALLER,
    "write: path.write_bytes": CALLER,
    "_write: save_file": CALLER,
    "_sort_metadata: open": CALLER,
    "_write_body: file.truncate": CALLER,
    "_of_all_hosts: np.savez": MEMORY,
    "_Blocks._write: np.savez": MEMORY,
    "check_picture: Image.fromarray(pixels).save": MEMORY,
    "with_checksums: h5py.File": MEMORY,
    "_no_standard_error: os.open": NO_FILE,
    "_forget_output: os.open": NO_FILE,
    "_resident_bytes: Path('/proc/self/clear_refs').write_text": NO_FILE,
    "Channel.__init__: os.fdopen": NO_FILE,
    "main: os.fdopen": NO_FILE,
    "Checkpoints.save: self._manager.save": ORBAX,
    "Epochs._save: self.files.checkpoints.save": ORBAX,
    "_Work.checkpoint: run.checkpoints.save": ORBAX,
    "_renamed: folder.rename": "a damaged checkpoint gets another name",
    "record_environment: path.replace": "a damaged file gets another name",
    "_Lines.__init__: open": "a log, to which whole lines are appended",
    "_Lines.append: self._file.truncate": "removes half a line from a log",
    "_built: (place / 'partial.so').replace": "the name has a hash of the content: a damaged library is built anew",
    "move_durably: os.replace": "is the writer",
    "_data_address: image.save": "into memory",
}


def direct_writes(source: str) -> list[str]:
    """The functions of a module that write outside of `with written_atomically(...)`, with what they call."""
    return [f"{function}: {call}" for function, call in _writes(ast.parse(source), "", False)]


def _writes(node: ast.AST, function: str, atomic: bool) -> Iterator[tuple[str, str]]:
    for child in ast.iter_child_nodes(node):
        inside = function
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inside = f"{function}.{child.name}".lstrip(".")
        within = atomic or (isinstance(child, ast.With) and any(_calls(item, ATOMIC) for item in child.items))
        if isinstance(child, ast.Call) and not within and _is_write(child):
            yield function, ast.unparse(child.func)
        yield from _writes(child, inside, within)


def _calls(item: ast.withitem, names: set[str]) -> bool:
    return isinstance(item.context_expr, ast.Call) and _name(item.context_expr) in names


def _name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _is_write(call: ast.Call) -> bool:
    name, texts = _name(call), [ast.unparse(each) for each in (*call.args, *(word.value for word in call.keywords))]
    if name in ("open", "fdopen", "File", "ZipFile"):
        flags = " ".join(texts)
        modes = [text.strip("'") for text in texts[:2] if text.startswith("'")]
        return any(set(mode) <= set("rwaxbt+") and set(mode) & set("wax+") for mode in modes) or any(
            flag in flags for flag in ("O_WRONLY", "O_RDWR", "O_CREAT")
        )
    if name in ("rename", "replace"):
        module = isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "os"
        return not call.keywords and len(call.args) == (2 if module else 1)
    return name in WRITERS or (name.startswith(("copy", "move")) and ast.unparse(call.func).startswith("shutil."))


def test_no_file_is_written_directly():
    found = {write for path in PACKAGE.rglob("*.py") for write in direct_writes(path.read_text(encoding="utf-8"))}
    assert found - REASONS.keys() == set(), "use jeffnet.system.files.write_file or written_atomically"
    assert REASONS.keys() - found == set(), "these are gone"


@pytest.mark.parametrize(
    "source",
    [
        "open(path, 'w')",
        "def f():\n    with open(path, mode='ab') as file:\n        file.write(b'')",
        "path.open('r+')",
        "os.open(path, os.O_WRONLY)",
        "Path(path).write_text('')",
        "class A:\n    def f(self):\n        path.write_bytes(b'')",
        "np.savez(path, a=a)",
        "figure.savefig(path)",
        "os.replace(a, b)",
        "path.replace(other)",
        "shutil.copy(a, b)",
        "with written_atomically(path) as partial:\n    pass\nsave_file(arrays, path)",
    ],
)
def test_a_direct_write_is_found(source: str):
    assert direct_writes(source)


@pytest.mark.parametrize(
    "source",
    [
        "open(path)",
        "open(path, 'rb')",
        "with written_atomically(path) as partial:\n    save_file(arrays, partial)",
        "with partial_folder(path) as folder:\n    with open(folder / 'a', 'xb') as file:\n        pass",
        "text.replace('a', 'b')",
        "dataclasses.replace(plan, a=1)",
        "array.copy()",
    ],
)
def test_other_calls_are_not_blamed(source: str):
    assert direct_writes(source) == []
