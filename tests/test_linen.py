"""The Linen models: every option of `create_model`, training mode, feature maps, and the tree of variables.

What the models compute is compared with timm in `test_timm_parity.py`; what they share with all backends is in
`test_backends.py`.
"""

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jeffnet.arch.lower import GLOBAL_POOLS
from jeffnet.arch.summary import array_specs, count_parameters
from jeffnet.arch.zoo import MODELS
from jeffnet.errors import ArchitectureError, WeightsError
from jeffnet.linen import BatchNorm, ImageClassifier, create_model, to_canonical, to_variables

NAME = "tiny"
POOL_FIRST = "tf_mobilenetv3_small_minimal_100"
CLASSES, BATCH, SIZE = 10, 4, 32

pytestmark = pytest.mark.usefixtures("tiny_model")
ONE_OF_EACH = (
    "efficientnet_es",
    "mixnet_s",
    "mobilenetv3_small_100",
    "mobilenetv4_hybrid_medium_075",
    "tf_efficientnet_b0",
)
ALL = [pytest.param(name, marks=() if name in ONE_OF_EACH else pytest.mark.slow) for name in MODELS]


def _images(channels=3, batch=BATCH, size=SIZE, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, size, size, channels)).astype(np.float32)


def _run(function, *arguments):
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})(*arguments)


def _create(name=NAME, **options):
    return create_model(name, **{"num_classes": CLASSES} | options)


def _abstract(name=NAME, **options):
    return _create(name, abstract=True, **options)


def _randomized(variables):
    """Every array random, as trained ones are, statistics included."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(x * rng.uniform(0.5, 1.5, x.shape) + 0.01, x.dtype), variables)


@pytest.fixture(scope="module")
def small():
    """A model with random variables, and its outputs: logits, pre-logits and maps."""
    model, variables = _create()
    variables = _randomized(variables)

    def outputs(variables, images):
        methods = ("__call__", "pre_logits", "features")
        return [model.apply(variables, images, method=method) for method in methods]

    return model, variables, *_run(outputs, variables, _images())


@pytest.fixture(scope="module")
def train_step():
    """A jitted training forward pass; dropout and drop path are on."""
    model, variables = _create(drop_rate=0.2, drop_path_rate=0.2)

    def step(variables, images, key):
        return model.apply(variables, images, train=True, rngs={"dropout": key}, mutable=["batch_stats"])

    return variables, jax.jit(step, compiler_options={"xla_backend_optimization_level": 0})


@pytest.mark.parametrize("name", ALL)
def test_logits_and_variables_have_the_plans_shapes(name):
    """`create_model` makes the very tree that Linen's own `init` makes; logits are (N, classes).

    Defect 3 of the earlier implementation: MobileNetV3's logits were (N, 1, 1, classes).
    """
    model, variables = _abstract(name)
    logits, initialized = jax.eval_shape(model.init_with_output, jax.random.key(0), _images())
    assert (logits.shape, logits.dtype) == ((BATCH, CLASSES), jnp.float32)
    assert jax.tree.structure(variables) == jax.tree.structure(initialized)
    for ours, theirs in zip(jax.tree.leaves(variables), jax.tree.leaves(initialized), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)


@pytest.mark.parametrize("name", ["efficientnet_l2", "tf_efficientnet_l2"])
def test_abstract_variables_allocate_nothing(name):
    model, variables = create_model(name, abstract=True)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(variables))
    sizes = [leaf.size for leaf in jax.tree.leaves(variables["params"])]
    assert sum(sizes) == count_parameters(model.plan) == 480_309_308


def test_abstract_variables_are_those_of_the_real_ones():
    for options in ({}, {"param_dtype": jnp.bfloat16, "num_classes": 0, "in_chans": 5}):
        real, abstract = _create(**options)[1], _abstract(**options)[1]
        assert jax.tree.map(lambda x: (x.shape, x.dtype), real) == jax.tree.map(lambda x: (x.shape, x.dtype), abstract)


def test_names_become_paths_and_back(small):
    """`to_canonical` is the inverse of `to_variables`, in the Plan's order."""
    model, variables = small[:2]
    arrays = to_canonical(variables, model.plan)
    assert list(arrays) == list(array_specs(model.plan))
    assert {name: array.shape for name, array in arrays.items()} == {
        name: spec.shape for name, spec in array_specs(model.plan).items()
    }
    again = to_variables(arrays)
    assert jax.tree.structure(again) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    assert variables["params"]["blocks_2_1"]["conv_dw_1"]["kernel"] is arrays["blocks.2.1.conv_dw.1.kernel"]
    assert variables["batch_stats"]["blocks_2_1"]["bn3"]["var"] is arrays["blocks.2.1.bn3.var"]
    kernel = model.bind(variables).blocks[2][1].conv_dw[1].variables["params"]["kernel"]
    assert kernel is arrays["blocks.2.1.conv_dw.1.kernel"]


def test_a_missing_variable_is_named():
    model, variables = _abstract()
    del variables["batch_stats"]["blocks_2_1"]["bn3"]["var"]
    with pytest.raises(WeightsError, match=r"'blocks.2.1.bn3.var' \(at blocks_2_1/bn3/var\)"):
        to_canonical(variables, model.plan)


def test_logits_are_the_classifier_of_the_pre_logits(small):
    _, variables, logits, pre_logits, _ = small
    assert logits.shape == (BATCH, CLASSES) and pre_logits.shape == (BATCH, 64)
    classifier = variables["params"]["classifier"]
    expected = pre_logits @ classifier["kernel"] + classifier["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5 * float(jnp.abs(logits).max()))
    assert float(jnp.abs(logits - logits[0]).max()) > 0  # pictures tell


def test_pre_logits_are_the_head_of_the_last_map(small):
    """The last feature map goes into the head convolution, its norm and the pooling, with nothing between."""
    model, variables, _, pre_logits, maps = small
    params, stats = variables["params"], variables["batch_stats"]["bn2"]
    x = maps[-1] @ params["conv_head"]["kernel"][0, 0]
    x = (x - stats["mean"]) / jnp.sqrt(stats["var"] + model.plan.head.norm.epsilon)
    x = jax.nn.silu(x * params["bn2"]["scale"] + params["bn2"]["bias"])
    expected = x.mean((1, 2))
    np.testing.assert_allclose(pre_logits, expected, rtol=1e-4, atol=1e-4 * float(jnp.abs(expected).max()))


def test_without_classes_a_call_gives_the_pre_logits(small):
    _, variables, _, pre_logits, _ = small
    model, own = _create(num_classes=0)
    assert "classifier" not in own["params"]
    trunk = {"params": dict(variables["params"]), "batch_stats": variables["batch_stats"]}
    del trunk["params"]["classifier"]
    np.testing.assert_allclose(_run(model.apply, trunk, _images()), pre_logits, rtol=1e-4, atol=1e-5)


def test_features_are_as_described(small):
    """Number, width and stride of each map, rounded up."""
    model, *_, maps = small
    assert len(maps) == len(model.feature_info) == 5
    for feature, info in zip(maps, model.feature_info, strict=True):
        side = -(-SIZE // info.stride)
        assert feature.shape == (BATCH, side, side, info.channels)


@pytest.mark.parametrize("indices", [(0,), (4, 1), (-1,), (-5, 2, -1), (3, 3), ()])
def test_features_by_index(indices, small):
    model, variables, _, _, maps = small
    chosen = _run(lambda v, x: model.apply(v, x, indices, method="features"), variables, _images())
    assert len(chosen) == len(indices)
    for feature, index in zip(chosen, indices, strict=True):
        np.testing.assert_allclose(feature, maps[index], rtol=1e-4, atol=1e-5 * float(jnp.abs(maps[index]).max()))


@pytest.mark.parametrize("indices", [(5,), (-6,), (0, 17)])
def test_features_that_are_not_there_are_an_error(indices):
    model, variables = _abstract()
    with pytest.raises(ArchitectureError, match=r"feature indices .*: the model has 5, 0 to 4"):
        jax.eval_shape(lambda v, x: model.apply(v, x, indices, method="features"), variables, _images())


def test_features_run_nothing_behind_them():
    """The variables of later stages are not even looked at."""
    model, variables = _abstract()
    needed = {"conv_stem", "bn1", "blocks_0_0", "blocks_1_0"}
    early = {kind: {key: tree[key] for key in tree.keys() & needed} for kind, tree in variables.items()}
    (feature,) = jax.eval_shape(lambda v, x: model.apply(v, x, (1,), method="features"), early, _images())
    assert feature.shape == (BATCH, 8, 8, 16)


@pytest.mark.parametrize("name", [NAME, POOL_FIRST])
@pytest.mark.parametrize("kind", GLOBAL_POOLS)
def test_global_pools_have_their_shapes(name, kind):
    for num_classes, width in ((CLASSES, CLASSES), (0, None)):
        model, variables = _abstract(name, global_pool=kind, num_classes=num_classes)
        output = jax.eval_shape(model.apply, variables, _images(size=64))
        width = width or model.plan.num_features
        assert output.shape == ((BATCH, 2, 2, width) if kind == "none" else (BATCH, width))


def test_unpooled_logits_average_to_the_pooled_ones():
    """The classifier is linear: without pooling it gives a map of logits, whose mean is that of the pooled features."""
    model, variables = _create()
    unpooled = _create(global_pool="none")[0]
    variables, images = _randomized(variables), _images(size=64)
    logits, maps = _run(lambda v, x: (model.apply(v, x), unpooled.apply(v, x)), variables, images)
    assert maps.shape == (BATCH, 2, 2, CLASSES)
    assert float(jnp.abs(maps - maps[:, :1, :1]).max()) > 0
    np.testing.assert_allclose(maps.mean((1, 2)), logits, rtol=1e-4, atol=1e-4 * float(jnp.abs(logits).max()))


def test_pools_differ_and_average():
    """'avgmax' is the mean of the other two, before a linear classifier."""
    variables = _randomized(_create()[1])
    models = [_create(global_pool=kind)[0] for kind in ("avg", "max", "avgmax")]
    average, largest, both = _run(lambda v, x: [model.apply(v, x) for model in models], variables, _images(size=64))
    scale = float(jnp.abs(largest).max())
    assert float(jnp.abs(average - largest).max()) > 1e-2 * scale
    np.testing.assert_allclose(both, (average + largest) / 2, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("name", [NAME, "tf_efficientnet_b0", POOL_FIRST])
def test_output_strides_have_their_shapes(name, output_stride):
    model, variables = _abstract(name, output_stride=output_stride)
    maps = jax.eval_shape(lambda v, x: model.apply(v, x, method="features"), variables, _images(size=64))
    assert [feature.shape[1:3] for feature in maps] == [
        (64 // info.stride, 64 // info.stride) for info in model.feature_info
    ]
    assert maps[-1].shape[1] == 64 // output_stride


@pytest.mark.parametrize("in_chans", [1, 5])
def test_input_channels(in_chans):
    model, variables = _create(in_chans=in_chans)
    assert variables["params"]["conv_stem"]["kernel"].shape == (3, 3, in_chans, 8)
    images = _images(in_chans)
    assert jax.eval_shape(model.apply, variables, images).shape == (BATCH, CLASSES)


def test_parameters_in_float64(x64):
    model, variables = _create(dtype=jnp.float64, param_dtype=jnp.float64)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float64)}
    _, initialized = jax.eval_shape(model.init_with_output, jax.random.key(0), _images())
    assert {leaf.dtype for leaf in jax.tree.leaves(initialized)} == {jnp.dtype(jnp.float64)}
    assert jax.eval_shape(model.apply, variables, _images()).dtype == jnp.float64


def test_seeds_and_keys_reach_the_arrays():
    kernels = [_create(rng=rng)[1]["params"]["conv_stem"]["kernel"] for rng in (0, 0, 1, jax.random.key(1))]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert (kernels[0] != kernels[2]).all() and (kernels[2] != kernels[3]).all()
    default = _create()[1]["params"]["conv_stem"]["kernel"]
    np.testing.assert_array_equal(default, kernels[0])


def test_training_needs_a_key():
    model, variables = _abstract(drop_rate=0.2, drop_path_rate=0.0)
    with pytest.raises(flax.errors.InvalidRngError):
        jax.eval_shape(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]), variables, _images())
    model, variables = _abstract(drop_rate=0.0, drop_path_rate=0.2)
    with pytest.raises(flax.errors.InvalidRngError):
        jax.eval_shape(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]), variables, _images())


def test_training_without_dropping_needs_no_key():
    model, variables = _abstract(drop_rate=0.0, drop_path_rate=0.0)
    logits, _ = jax.eval_shape(
        lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]), variables, _images()
    )
    assert logits.shape == (BATCH, CLASSES)


def test_evaluation_may_not_change_statistics(train_step):
    """And without `mutable` training cannot either: it is an error instead of being forgotten."""
    model, variables = _abstract(drop_rate=0.0, drop_path_rate=0.0)
    with pytest.raises(flax.errors.ModifyScopeVariableError):
        jax.eval_shape(lambda v, x: model.apply(v, x, train=True), variables, _images())


def test_statistics_move_towards_the_batchs():
    """new = momentum * old + (1 - momentum) * batch: 0 takes the batch's, and any other lies where it says."""
    updated = {}
    variables = _randomized(_create()[1])
    for momentum in (None, 0.0, 0.75):
        model, _ = _create(bn_momentum=momentum, drop_rate=0.0, drop_path_rate=0.0)
        _, updated[momentum] = _run(
            lambda v, x, model=model: model.apply(v, x, train=True, mutable=["batch_stats"]), variables, _images()
        )
    old, batch = variables["batch_stats"], updated[0.0]["batch_stats"]
    for momentum, keep in ((None, 0.9), (0.75, 0.75)):
        jax.tree.map(
            lambda new, old, batch, keep=keep: np.testing.assert_allclose(
                new, keep * old + (1 - keep) * batch, rtol=1e-3, atol=1e-4
            ),
            updated[momentum]["batch_stats"],
            old,
            batch,
        )
    stem = jax.lax.conv_general_dilated(
        _images(), variables["params"]["conv_stem"]["kernel"], (2, 2), ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    np.testing.assert_allclose(batch["bn1"]["mean"], stem.mean((0, 1, 2)), rtol=1e-3, atol=1e-5)
    # The unbiased variance: the biased one is smaller by a 1,024th.
    np.testing.assert_allclose(batch["bn1"]["var"], np.asarray(stem).var((0, 1, 2), ddof=1), rtol=1e-4)


def test_every_statistic_is_updated(train_step):
    variables, step = train_step
    _, updated = step(variables, _images(), jax.random.key(0))
    assert jax.tree.structure(updated["batch_stats"]) == jax.tree.structure(variables["batch_stats"])
    for old, new in zip(
        jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(updated["batch_stats"]), strict=True
    ):
        assert float(jnp.abs(old - new).max()) > 0


def test_every_parameter_has_a_gradient():
    """Nothing is left out of the function: neither a part of a mixed convolution nor squeeze-and-excitation."""
    model, variables = _create(drop_rate=0.0)
    variables = _randomized(variables)

    def loss(params, images):
        logits = model.apply({"params": params, "batch_stats": variables["batch_stats"]}, images)
        return (logits * jnp.arange(CLASSES)).sum()

    gradients = _run(jax.grad(loss), variables["params"], _images(batch=2))
    silent = [path for path, leaf in jax.tree.leaves_with_path(gradients) if not float(jnp.abs(leaf).max()) > 0]
    assert silent == []


def test_equal_models_are_one_static_argument():
    """A model can be passed to `jax.jit` as static: a second one with the same options compiles nothing anew."""
    one, other, third = (_abstract(drop_rate=rate)[0] for rate in (0.2, 0.2, 0.3))
    assert one == other and hash(one) == hash(other)
    assert one != third


def test_tabulate():
    """The table of Linen, with the model's total."""
    model, _ = _abstract()
    table = model.tabulate(jax.random.key(0), _images(), console_kwargs={"width": 250})
    assert "blocks_2_1" in table and "conv_stem" in table and "BatchNorm" in table
    total = count_parameters(model.plan) + sum(
        np.prod(spec.shape) for spec in array_specs(model.plan).values() if not spec.is_parameter
    )
    assert f"Total Parameters: {total:,}" in table


def test_capture_intermediates():
    """Every module's output, under its name; those of blocks are what `features` gives."""
    model, variables = _create()

    def both(variables, images):
        _, state = model.apply(variables, images, capture_intermediates=True, mutable=["intermediates"])
        return state["intermediates"], model.apply(variables, images, method="features")

    captured, maps = _run(both, variables, _images())
    assert captured["conv_stem"]["__call__"][0].shape == (BATCH, SIZE // 2, SIZE // 2, 8)
    assert captured["blocks_2_1"]["se"]["conv_reduce"]["__call__"][0].shape == (BATCH, 1, 1, 8)
    assert captured["classifier"]["__call__"][0].shape == (BATCH, CLASSES)
    np.testing.assert_allclose(captured["blocks_4_1"]["__call__"][0], maps[-1], rtol=1e-4, atol=1e-5)


def test_remat_of_the_whole_model():
    """`nn.remat` around the class, as around any of Linen's; the tree of variables stays."""
    model, variables = _create("tiny_flat", drop_rate=0.0)
    whole = nn.remat(ImageClassifier)(model.plan)

    def gradient_of(model):
        return jax.grad(lambda params: (model.apply({**variables, "params": params}, _images()) ** 2).sum())

    assert "remat" in str(jax.make_jaxpr(gradient_of(whole))(variables["params"]))
    assert "remat" not in str(jax.make_jaxpr(gradient_of(model))(variables["params"]))
    plain, again = (_run(gradient_of(each), variables["params"]) for each in (model, whole))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(a).max())), plain, again
    )


def test_layers_are_linens_own():
    """What finds `nn.Conv`, `nn.BatchNorm` or `nn.Dense` in any Linen model finds them here."""
    model, variables = _abstract()
    seen = set()

    def spy(next_function, args, kwargs, context):
        seen.update(kind for kind in (nn.Conv, nn.BatchNorm, nn.Dense, nn.Dropout) if isinstance(context.module, kind))
        return next_function(*args, **kwargs)

    with nn.intercept_methods(spy):
        jax.eval_shape(model.apply, variables, _images())
    assert seen == {nn.Conv, nn.BatchNorm, nn.Dense, nn.Dropout}


def test_batch_norm_takes_no_mask():
    """It would be ignored."""
    norm = BatchNorm(use_running_average=True)
    variables = norm.init(jax.random.key(0), jnp.ones((2, 3)))
    with pytest.raises(ArchitectureError, match="mask"):
        norm.apply(variables, jnp.ones((2, 3)), mask=jnp.ones((2, 3), bool))


def test_names_of_timm_are_taken():
    assert _abstract("mnasnet_small")[0] == _abstract("pt_mnasnet_small")[0]
