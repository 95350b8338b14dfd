"""What jeffnet uses of JAX's internals. When a new JAX breaks something, these tests name it."""

import ast
import importlib
import inspect
import logging
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jeffnet
from jeffnet import _jax_compat

PACKAGE = Path(jeffnet.__file__).parent
INTERNAL = re.compile(r"jax\.(_src|interpreters|extend|ffi|lib)\b|jaxlib\.(?!version\b)")

USED = [
    ("jax._src.distributed", "global_state.client"),
    ("jax._src.distributed", "global_state.num_processes"),
    ("jax._src.lib", "_jax.get_distributed_runtime_client"),
    ("jax._src.core", "Primitive.bind"),
    ("jax._src.core", "Primitive.def_abstract_eval"),
    ("jax._src.core", "Primitive.def_impl"),
    ("jax.interpreters.ad", "defbilinear"),
    ("jax.interpreters.ad", "instantiate_zeros"),
    ("jax.interpreters.ad", "is_undefined_primal"),
    ("jax.interpreters.ad", "primitive_jvps"),
    ("jax.interpreters.ad", "primitive_transposes"),
    ("jax.interpreters.batching", "primitive_batchers"),
    ("jax.interpreters.mlir", "lower_fun"),
    ("jax.interpreters.mlir", "register_lowering"),
    ("jax", "ffi.ffi_call"),
    ("jax", "ffi.include_dir"),
    ("jax", "ffi.pycapsule"),
    ("jax", "ffi.register_ffi_target"),
    ("jax", "lax.pcast"),
]


@pytest.mark.parametrize(("module", "name"), USED, ids=lambda text: text)
def test_jax_still_has(module, name):
    found = importlib.import_module(module)
    for part in name.split("."):
        assert hasattr(found, part), f"JAX {jax.__version__}: {module} has no {name}: see jeffnet/_jax_compat.py"
        found = getattr(found, part)


def test_the_list_names_all_that_is_imported():
    tree = ast.parse(Path(_jax_compat.__file__).read_text())
    listed = {f"{module}.{name}." for module, name in USED}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and INTERNAL.match(f"{node.module}."):
            for alias in node.names:
                assert any(name.startswith(f"{node.module}.{alias.name}.") for name in listed), alias.name


def test_clients_of_the_coordination_service_take_a_callback():
    """As a keyword: the function is compiled, and says so in its documentation alone."""
    from jax._src.lib import _jax

    assert "missed_heartbeat_callback" in (_jax.get_distributed_runtime_client.__doc__ or "")
    before = _jax.get_distributed_runtime_client
    with _jax_compat.clients_call(lambda: None) as is_possible:
        assert is_possible and _jax.get_distributed_runtime_client.keywords.keys() == {"missed_heartbeat_callback"}
    assert _jax.get_distributed_runtime_client is before


def test_a_plugins_failure_is_logged_where_we_listen():
    """`jeffnet.system.devices` reads why a platform is missing from this logger."""
    from jax._src import xla_bridge

    assert xla_bridge.logger is _jax_compat.PLUGIN_LOGGER is logging.getLogger(xla_bridge.__name__)


def twice(x, *, factor):
    return factor * x


def test_a_primitive_in_every_context():
    """Outside of `jax.jit`, inside, mapped, exported, and without compilation; its lowering sees which one it is."""
    seen = []

    def on_cpu(ctx, x, *, factor):
        assert x.shape and factor == 2
        seen.append((_jax_compat.is_exported(ctx), _jax_compat.is_partitioned(ctx)))
        return twice

    primitive = _jax_compat.define_primitive("twice", twice, shape=lambda x, **_: x.shape, on_cpu=on_cpu)
    function = lambda x: primitive.bind(x, factor=2)  # noqa: E731
    x = jnp.arange(3.0)
    with jax.disable_jit():
        np.testing.assert_array_equal(function(x), 2 * x)
    np.testing.assert_array_equal(jax.jit(function)(x), 2 * x)
    np.testing.assert_array_equal(jax.vmap(function)(x), 2 * x)
    assert set(seen) == {(False, False)}
    exported = jax.export.export(jax.jit(function), platforms=["cpu"])(x)
    np.testing.assert_array_equal(exported.call(x), 2 * x)
    assert seen[-1] == (True, False)


def test_attributes_of_foreign_calls(monkeypatch):
    """Whole numbers have 64 bits, as the kernels declare them; a boolean stays one."""
    passed = {}
    monkeypatch.setattr(jax.ffi, "ffi_call", lambda *_: lambda **attributes: passed.update(attributes))
    _jax_compat.foreign_call("kernel", jax.ShapeDtypeStruct((), jnp.float32), act=3, window=(1, 2), gated=True)
    assert passed["act"].dtype == passed["window"].dtype == np.int64 and passed["window"].shape == (2,)
    assert isinstance(passed["act"], np.int64) and passed["gated"] is True


def internals(source: str) -> list[str]:
    """What a source names of JAX's internals: by import, as an attribute, or in a text."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            found.append(ast.unparse(node))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
            found.append(node.value)
    return [name for name in found if INTERNAL.match(name)]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_else_uses_internals(path):
    if path != Path(inspect.getfile(_jax_compat)):
        assert internals(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "from jax._src import core",
        "import jax.interpreters.mlir",
        "from jax.interpreters import ad",
        "from jax import ffi",
        "def f():\n    return jax.ffi.include_dir()",
        "import jaxlib.mlir.ir",
        "from jaxlib import xla_client",
        "logging.getLogger('jax._src.xla_bridge')",
    ],
)
def test_a_use_of_internals_is_found(source):
    assert internals(source)


def test_public_names_are_not_blamed():
    assert internals("import jax, jaxlib.version\nfrom jax import lax\njaxlib.version.__version__\njax.ffind") == []
