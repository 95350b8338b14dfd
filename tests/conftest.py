"""What all tests share: JAX on the CPU, its compilation cache, 64-bit mode, and the reference implementation."""

import contextlib
import gc
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every-third", action="store_true", help="of a test with more than four sets of parameters, run every third"
    )


@pytest.hookimpl(trylast=True)  # once the markers have been chosen
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `--every-third`, which is for further Pythons: one Python runs all, and stacked parameters occur in turn."""
    if not config.getoption("every_third", False):
        return
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    dropped = {item for of_one in tests.values() if len(of_one) > 4 for n, item in enumerate(of_one) if n % 3}
    config.hook.pytest_deselected(items=[item for item in items if item in dropped])
    items[:] = [item for item in items if item not in dropped]


def pytest_configure(config: pytest.Config) -> None:
    """Settle JAX's settings in the environment, before a test module imports it, so that subprocesses inherit them."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.rootpath / ".pytest_cache" / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    # Only a bounded cache takes a lock, without which two processes read each other's half-written entries.
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(2**30))
    if getattr(config.option, "numprocesses", None):
        _compile_libraries()
    # Tracing makes many objects, and every collection looks through all that were ever imported and compiled.
    gc.set_threshold(100_000, 20, 100)


def _compile_libraries() -> None:
    """Compile the C++ libraries before several test processes start, which otherwise each would do at the same time."""
    from jeffnet.ops import native
    from jeffnet.ops.native.build import LIBRARIES

    for library in LIBRARIES:
        with contextlib.suppress(native.NativeUnavailableError, OSError):  # its tests are skipped then
            native._prebuilt(library) or native._path(library)


@pytest.fixture(scope="module")
def small_model() -> Iterator[str]:
    """The name of a model that only the tests have: two blocks, since compiling larger ones takes most of the time."""
    from jeffnet.arch import zoo
    from jeffnet.arch.model import Model
    from jeffnet.arch.preprocessing import Preprocessing
    from jeffnet.arch.spec import ModelSpec

    spec = ModelSpec(
        stages=(("ds_r1_k3_s1_c8_se0.25",), ("ir_r1_k3_s2_e3_c16",)), stem=8, features=32, drop_path_rate=0.1
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(zoo.MODELS, "small_of_the_tests", Model(spec, Preprocessing(224, 0.875)))
        yield "small_of_the_tests"


@pytest.fixture(scope="module")
def tiny_model() -> Iterator[str]:
    """The name of a model that only the tests have: every kind of layer, a map at every stride, compiled in seconds.

    With it come `tiny_tf`, in the way of MobileNetV3 and TensorFlow, and `tiny_flat`, which compiles in no time: norms,
    dropout, and in its last block drop path, between 1x1 convolutions.
    """
    from jeffnet.arch import zoo
    from jeffnet.arch.model import Model
    from jeffnet.arch.preprocessing import Preprocessing
    from jeffnet.arch.spec import ModelSpec, SqueezeRule, as_tensorflow

    # Small kernels, since on the CPU every position of a depthwise one is compiled by itself.
    stages = (
        ("ds_r1_k3_s1_c8",),
        ("ir_r1_k3_s2_e2_c16",),
        ("ir_r2_k1.3_a1.1_p1.1_s2_e2_c16_se0.5",),
        ("er_r1_k3_s2_e2_c24",),
        ("ir_r2_k3_s2_e2_c32",),
    )
    tiny = ModelSpec(stages=stages, stem=8, features=64, act="silu")
    se = SqueezeRule(from_expanded=True, divisor=8, act="relu", gate="hard_sigmoid")
    stages = (
        ("ds_r1_k3_s2_c8_se0.25_nre",),
        ("ir_r1_k5_s2_e3_c16_se0.25", "ir_r1_k3_s1_e3_c16_se0.25"),
        ("cn_r1_k1_s1_c24",),
    )
    tiny_tf = as_tensorflow(ModelSpec(stages=stages, stem=8, features=64, act="hard_swish", se=se, pool_first=True))
    tiny_flat = ModelSpec(stages=(("cn_r1_k1_s1_c8",), ("cn_r2_k1_s2_c8_skip",)), stem=8, features=16)
    with pytest.MonkeyPatch.context() as patch:
        for name, spec in {"tiny": tiny, "tiny_tf": tiny_tf, "tiny_flat": tiny_flat}.items():
            patch.setitem(zoo.MODELS, name, Model(spec, Preprocessing(32, 1.0)))
        yield "tiny"


# Models of `every_operation`.
OPERATIONS = (
    "uir", "attention", "group_norm", "experts", "context", "packed", "blur", "average", "no_head", "v2_same",
)  # fmt: skip


@pytest.fixture(scope="module")
def every_operation() -> Iterator[None]:
    """The zoo with a model for each of `OPERATIONS`, of a few small blocks, named `tiny_of_<key>`."""
    from jeffnet.arch import zoo
    from jeffnet.arch.model import Model
    from jeffnet.arch.preprocessing import Preprocessing
    from jeffnet.arch.spec import ModelSpec, SqueezeRule

    specs = {
        # Depthwise convolutions at the start, in the middle and at the end, with and without a stride; all factors are
        # folded.
        "uir": ModelSpec(
            stages=(
                ("uir_r1_a3_k5_s2_e2_c16", "uir_r1_a0_k3_s1_e3_c16_se0.25"),
                ("uir_r1_a3_k0_s1_e2_c16_p3", "uir_r1_a0_k0_s2_e2_c24_p3", "uir_r1_a0_k0_s1_e2_c24"),
            ),
            stem=16,
            features=32,
            pool_first=True,
            head_norm=True,
            layer_scale=0.5,
        ),
        # Heads that share keys and values, of all positions and of every second; an activation without a kernel.
        "attention": ModelSpec(
            stages=(("uir_r1_a0_k3_s2_e2_c16", "mqa_r1_k3_s1_h2_v2_d8_c16", "mqa_r1_k3_s1_h3_d8_c16"),),
            stem=16,
            features=32,
            act="gelu",
            layer_scale=0.5,
        ),
        # The same with norms that cannot be folded.
        "group_norm": ModelSpec(
            stages=(("ir_r2_k3_s2_e2_c16_se0.25", "mqa_r1_k3_s1_h2_v2_d8_c16", "uir_r1_a3_k3_s1_e2_c16"),),
            stem=16,
            features=32,
            act="silu",
            norm="group",
            norm_group=4,
            layer_scale=0.5,
        ),
        "experts": ModelSpec(
            stages=(("ir_r2_k3_s2_e2_c16_se0.25_cc2",),), stem=16, features=32, act="silu", padding="same"
        ),
        "context": ModelSpec(
            stages=(("ir_r2_k3_s2_e2_c16_se0.25",), ("er_r1_k3_s2_e2_c16_se0.25",)),
            stem=16,
            features=32,
            act="silu",
            se=SqueezeRule(kind="context"),
        ),
        "packed": ModelSpec(
            stages=(("ds_r2_k3_s1_c8_se0.25_d1",), ("ir_r1_k3_s2_e2_c16",)), stem=16, features=32, padding="same"
        ),
        "blur": ModelSpec(
            stages=(("ir_r1_k3_s2_e2_c16_se0.25",), ("uir_r1_a0_k0_s2_e2_c16_p3",), ("er_r1_k3_s2_e2_c16",)),
            stem=16,
            features=32,
            downsample="blur",
            layer_scale=0.5,
        ),
        "average": ModelSpec(stages=(("uir_r1_a3_k3_s2_e2_c16",),), stem=16, features=32, downsample="average"),
        "no_head": ModelSpec(stages=(("dsa_r1_k3_s2_c16", "dsa_r2_k3_s1_c16"),), stem=16, features=0, act="relu6"),
        "v2_same": ModelSpec(
            stages=(("cn_r1_k3_s1_e1_c8_skip",), ("er_r2_k3_s2_e4_c16",), ("ir_r1_k3_s2_e4_c16_se0.25",)),
            stem=16,
            features=32,
            act="silu",
            padding="same",
        ),
    }
    assert tuple(specs) == OPERATIONS
    with pytest.MonkeyPatch.context() as patch:
        for name, spec in specs.items():
            patch.setitem(zoo.MODELS, f"tiny_of_{name}", Model(spec, Preprocessing(32, 1.0)))
        yield


@pytest.fixture(params=OPERATIONS)
def one_operation(request: pytest.FixtureRequest, every_operation: None) -> str:
    """The name of each model of `every_operation` in turn."""
    return f"tiny_of_{request.param}"


@pytest.fixture
def x64() -> Iterator[None]:
    """64-bit JAX for one test."""
    import jax

    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def lite0_weights() -> Path:
    """The authors' weights of EfficientNet-Lite0, from a package: a state dict of `efficientnet_pytorch`."""
    from jeffnet.weights.packages import find_in_package, package_of

    path = find_in_package("tf_efficientnet_lite0")
    if path is None:
        pytest.skip(f"{package_of('tf_efficientnet_lite0')} is not installed")
    return path


# Photographs that scikit-learn and scikit-image have in their packages, and their classes, which Lite0 finds.
PHOTOGRAPHS = {
    "sklearn/datasets/images/china.jpg": "n03877845",  # palace
    "sklearn/datasets/images/flower.jpg": "n11939491",  # daisy
    "skimage/data/chelsea.png": "n02123159",  # tiger cat
    "skimage/data/coffee.png": "n07920052",  # espresso
    "skimage/data/rocket.jpg": "n03773504",  # missile
    "skimage/data/camera.png": "n04485082",  # tripod
    "skimage/data/motorcycle_left.png": "n03785016",  # moped
}


@pytest.fixture(scope="session")
def photographs() -> dict[Path, str]:
    """The classes of photographs, as WordNet numbers, by their files."""
    found = {}
    for name, wordnet in PHOTOGRAPHS.items():
        package, _, rest = name.partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            pytest.skip(f"{package} is not installed")
        found[Path(spec.submodule_search_locations[0]) / rest] = wordnet
    return found


# JAX's settings that forbid or check something, and its 64 bits.
STRICT: dict[str, Any] = {
    "disable_jit": True,
    "numpy_rank_promotion": "raise",
    "numpy_dtype_promotion": "strict",
    "debug_nans": True,
    "debug_infs": True,
    "check_tracer_leaks": True,
    "transfer_guard": "disallow",
    "enable_x64": True,
}


# The others are settings that a quick test of the same code has too, or that take long.
_SLOW_SETTINGS = ("debug_nans", "disable_jit", "check_tracer_leaks")


@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.slow if name in _SLOW_SETTINGS else ()) for name in STRICT]
)
def strict_jax(request: pytest.FixtureRequest) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """A context in which one of `STRICT` is set; each in turn."""
    import jax

    name = f"jax_{request.param}"

    @contextlib.contextmanager
    def strictly() -> Iterator[None]:
        before = getattr(jax.config, name)
        jax.config.update(name, STRICT[request.param])
        try:
            yield
        finally:
            jax.config.update(name, before)

    return strictly


@pytest.fixture(scope="session")
def timm() -> ModuleType:
    """The reference implementation; what asks for it is skipped where torch or timm is not installed."""
    for name in ("torch", "torchvision", "timm"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        # Its compiled operators do not load beside some builds of torch. Only detection models need them, but the
        # module that registers their shapes fails on import, and torchvision with it: stand in for that module.
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        name = "torchvision._meta_registrations"
        sys.modules[name] = ModuleType(name)
    # Threads of several test processes would wait for one another at every operation.
    importlib.import_module("torch").set_num_threads(1)
    return importlib.import_module("timm")


@pytest.fixture
def no_draws(timm: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of torch draw no initial values, which takes long even on the `meta` device, where there are none."""
    tensor = importlib.import_module("torch").Tensor
    for draw in ("normal_", "uniform_"):
        monkeypatch.setattr(tensor, draw, lambda self, *_, **__: self)
