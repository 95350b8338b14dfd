"""Policies: timm's tables and notation, draws as they should be distributed, and errors that name what is wrong."""

import pickle
from collections import Counter, defaultdict
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from jeffnet.data.augment import augmix, jitter
from jeffnet.data.augment.augmix import AugMix
from jeffnet.data.augment.autoaugment import SUB_POLICIES, AutoAugment
from jeffnet.data.augment.jitter import ColorJitter
from jeffnet.data.augment.magnitudes import OPERATIONS, Canvas, Operation
from jeffnet.data.augment.policies import parse_policy, policy_magnitude, with_magnitude
from jeffnet.data.augment.randaugment import RandAugment
from jeffnet.data.augment.trivial import WIDE, TrivialAugment
from jeffnet.errors import ConfigError

EXAMPLES = [
    *SUB_POLICIES,
    "v0-mstd0.5",
    "rand",
    "rand-m9-mstd0.5-inc1",
    "rand-tweights",
    "rand-w0-n3-p1",
    "augmix",
    "augmix-b1-d2",
    "trivial",
]


def camel_case(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


@pytest.fixture
def reference(timm: ModuleType) -> ModuleType:
    from timm.data import auto_augment

    return auto_augment


@pytest.mark.parametrize("name", SUB_POLICIES)
def test_sub_policies_equal_timms(name: str, reference: ModuleType):
    theirs = [[(op.name, op.prob, op.magnitude) for op in steps] for steps in reference.auto_augment_policy(name)]
    ours = [
        [(camel_case(step.operation), step.probability, step.magnitude) for step in steps]
        for steps in SUB_POLICIES[name]
    ]
    assert ours == theirs


@pytest.mark.parametrize(
    "text",
    [
        "rand",
        "rand-m9",
        "rand-m9-n3-p0.3",
        "rand-m7-mstd0.5-inc1",
        "rand-mstd101-m4",
        "rand-m15-mmax20-n1",
        "rand-inc0-mstd2",
        "rand-inc1-mstd1-tweights",
        "rand-t3a",
        "rand-n4-t3aw",
    ],
)
def test_rand_augment_is_read_as_timm_reads_it(text: str, reference: ModuleType):
    ours, theirs = parse_policy(text), reference.rand_augment_transform(text)
    assert isinstance(ours, RandAugment) and ours.layers == theirs.num_layers
    assert [camel_case(name) for name in ours.operations] == [op.name for op in theirs.ops]
    assert {(op.prob, op.magnitude, op.magnitude_std, op.magnitude_max or 10) for op in theirs.ops} == {
        (ours.probability, ours.magnitude, ours.noise.std, ours.noise.most)
    }
    if theirs.choice_weights is None:
        assert ours.weights is None
    else:
        assert ours.weights is not None
        np.testing.assert_allclose(np.array(ours.weights) / sum(ours.weights), theirs.choice_weights, rtol=1e-12)


@pytest.mark.parametrize("text", ["augmix", "augmix-m5-w4-d2-mstd0.5", "augmix-b1-a0.5", "augmix-w1-b0"])
def test_augmix_is_read_as_timm_reads_it(text: str, reference: ModuleType):
    ours, theirs = parse_policy(text), reference.augment_and_mix_transform(text)
    assert isinstance(ours, AugMix)
    assert {(op.magnitude, op.magnitude_std) for op in theirs.ops} == {(ours.magnitude, ours.noise.std)}
    assert (ours.width, ours.alpha, ours.blended) == (theirs.width, theirs.alpha, theirs.blended)
    assert (ours.depth or -1) == theirs.depth
    names = [camel_case(name.replace("_short", "_rel")) for name in augmix._MIXED]
    assert sorted(names) == sorted(op.name for op in theirs.ops)


@pytest.mark.parametrize("name", ["translate_x_short", "translate_y_short"])
def test_augmix_moves_as_far_as_timms(name: str, reference: ModuleType):
    """Which its training transform tells it, at 0.3."""
    make = OPERATIONS[name].argument
    (theirs,) = reference.LEVEL_TO_ARG[camel_case(name.replace("short", "rel"))](7, {"translate_pct": 0.3})
    assert make is not None and abs(make(7, 0.2)) == abs(theirs)


def test_trivial_augment_has_torchvisions_ranges(timm: ModuleType):
    from torchvision.transforms import TrivialAugmentWide

    space = TrivialAugmentWide()._augmentation_space(31)
    assert [camel_case(name) for name in WIDE] == [name.replace("Autocontrast", "AutoContrast") for name in space]
    for (name, operation), (values, signed) in zip(WIDE.items(), space.values(), strict=True):
        if operation.argument is None:
            assert values.ndim == 0, name
            continue
        for number, value in enumerate(values.tolist()):
            ours = [operation.argument(number / 3, draw) for draw in (0.2, 0.7)]
            if name in ("brightness", "color", "contrast", "sharpness"):
                ours = [factor - 1 for factor in ours]
            if name.startswith("translate"):
                value = int(value + 1e-4)  # 32-bit floats are a little below 16
            expected = [-value, value] if signed else [value, value]
            np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("text", EXAMPLES)
def test_a_policy_keeps_size_and_mode_and_depends_on_the_generator(text: str, photographs: dict[str, Image.Image]):
    """Twenty draws are more than one picture, and the same for an equal generator and for a copy from a process."""
    policy = parse_policy(text, Canvas((124, 116, 104)))
    copy = pickle.loads(pickle.dumps(policy))
    assert copy == policy
    for image in photographs.values():
        before = image.tobytes()
        first, again = ([one(image, np.random.default_rng(seed)) for seed in range(20)] for one in (policy, copy))
        assert {(result.mode, result.size) for result in first} == {(image.mode, image.size)}
        assert [result.tobytes() for result in first] == [result.tobytes() for result in again]
        assert len({result.tobytes() for result in first}) > 2
        assert image.tobytes() == before


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The operations that took place."""
    done: list[str] = []

    def recording(name: str) -> Operation:
        def function(image: Image.Image) -> Image.Image:
            done.append(name)
            return image

        return Operation(function)

    for table in (OPERATIONS, WIDE):
        for name in list(table):
            monkeypatch.setitem(table, name, recording(name))
    return done


IMAGE = Image.new("RGB", (4, 4))


@pytest.mark.parametrize("text", ["rand-p1", "rand-p1-inc1", "rand-p1-t3a", "rand-p1-n1-tweights", "rand-p1-n1-w0"])
def test_operations_are_drawn_by_their_weights(text: str, names: list[str]):
    policy, rng = parse_policy(text), np.random.default_rng(0)
    assert isinstance(policy, RandAugment)
    for _ in range(3000):
        policy(IMAGE, rng)
    assert len(names) == 3000 * policy.layers
    weights = np.array(policy.weights or [1.0] * len(policy.operations))
    shares = weights / weights.sum()
    counts = Counter(names)
    found = np.array([counts[name] for name in policy.operations]) / len(names)
    assert (np.abs(found - shares) <= 5 * np.sqrt(shares / len(names))).all()


@pytest.mark.parametrize("text", ["rand-w0", "rand-w0-inc1"])
def test_the_first_weights_favour_geometry(text: str):
    """timm no longer has them. They go by place, so that they are the same for operations of either kind."""
    policy = parse_policy(text)
    assert isinstance(policy, RandAugment) and policy.weights is not None
    found = {
        name.removesuffix("_increasing"): share for name, share in zip(policy.operations, policy.weights, strict=True)
    }
    assert found == {
        "rotate": 0.3,
        **dict.fromkeys(("shear_x", "shear_y"), 0.2),
        **dict.fromkeys(("translate_x_rel", "translate_y_rel"), 0.1),
        **dict.fromkeys(("color", "sharpness", "auto_contrast"), 0.025),
        **dict.fromkeys(("solarize", "solarize_add", "contrast", "brightness", "equalize"), 0.005),
        **dict.fromkeys(("posterize", "invert"), 0),
    }


def test_weighted_operations_are_not_drawn_twice(names: list[str]):
    rng = np.random.default_rng(0)
    for _ in range(300):
        names.clear()
        parse_policy("rand-p1-n4-t3aw")(IMAGE, rng)
        assert len(set(names)) == 4


def test_the_probability_of_rand_augment_is_honoured(names: list[str]):
    rng = np.random.default_rng(0)
    for _ in range(3000):
        parse_policy("rand-n2-p0.3")(IMAGE, rng)
    assert abs(len(names) / 6000 - 0.3) < 0.03


def test_the_probabilities_of_auto_augment_are_honoured(names: list[str]):
    """Each pair as often as any other, each step of it as often as the table says."""
    policy, rng = parse_policy("v0"), np.random.default_rng(0)
    assert isinstance(policy, AutoAugment)
    for _ in range(10_000):
        policy(IMAGE, rng)
    expected: dict[str, float] = defaultdict(float)
    for steps in policy.sub_policies:
        for step in steps:
            expected[step.operation] += step.probability / len(policy.sub_policies)
    counts = Counter(names)
    for name, share in expected.items():
        assert abs(counts[name] / 10_000 - share) <= 5 * (share / 10_000) ** 0.5, name
    assert not set(counts) - set(expected)


def test_trivial_augment_draws_one_operation_alike(names: list[str]):
    rng = np.random.default_rng(0)
    for _ in range(2800):
        parse_policy("trivial")(IMAGE, rng)
    assert len(names) == 2800 and set(names) == set(WIDE)
    assert max(Counter(names).values()) < 280 and min(Counter(names).values()) > 130


def test_trivial_augment_draws_all_magnitudes(monkeypatch: pytest.MonkeyPatch):
    seen: set[float] = set()

    def remember(magnitude: float, draw: float) -> float:
        seen.add(magnitude)
        return 1.0

    for name in list(WIDE):
        monkeypatch.setitem(WIDE, name, Operation(lambda image, argument: image, remember))
    rng = np.random.default_rng(0)
    for _ in range(500):
        TrivialAugment()(IMAGE, rng)
    np.testing.assert_allclose(sorted(seen), np.arange(31) / 3)


@pytest.mark.parametrize("blended", [False, True])
def test_augmix_mixes_by_shares_of_one(blended: bool, monkeypatch: pytest.MonkeyPatch):
    """Every operation answers white: of grey pixels g there remain g (1 - s), with s of a Beta(1, 1): uniform."""
    for name in augmix._MIXED:
        monkeypatch.setitem(OPERATIONS, name, Operation(lambda image: Image.new("L", image.size, 255)))
    policy, rng = AugMix(blended=blended), np.random.default_rng(0)
    values = [np.asarray(policy(Image.new("L", (2, 2), 55), rng))[0, 0] for _ in range(2000)]
    np.testing.assert_allclose(np.quantile(values, [0, 0.25, 0.5, 0.75, 1]), [55, 105, 155, 205, 255], atol=8)


def test_both_ways_to_mix_agree(photographs: dict[str, Image.Image]):
    """To within the rounding, which blending does once a chain."""
    for seed in range(5):
        exact, blended = (
            np.asarray(AugMix(blended=blended)(photographs["china"], np.random.default_rng(seed))).astype(int)
            for blended in (False, True)
        )
        assert np.abs(exact - blended).max() <= 3


def test_chains_of_augmix_are_as_deep_as_asked(names: list[str]):
    rng = np.random.default_rng(0)
    lengths = []
    for _ in range(900):
        names.clear()
        parse_policy("augmix-w1")(IMAGE, rng)
        lengths.append(len(names))
    assert set(lengths) == {1, 2, 3} and min(Counter(lengths).values()) > 240
    names.clear()
    parse_policy("augmix-w4-d5")(IMAGE, rng)
    assert len(names) == 20


def test_colour_jitter_draws_three_factors_in_any_order(monkeypatch: pytest.MonkeyPatch):
    calls: list[tuple[str, float]] = []

    def recording(name: str):
        def function(image: Image.Image, factor: float) -> Image.Image:
            calls.append((name, factor))
            return image

        return function

    monkeypatch.setattr(jitter, "native", lambda: None)
    monkeypatch.setattr(jitter, "_CHANGES", tuple(map(recording, ("brightness", "contrast", "color"))))
    rng = np.random.default_rng(0)
    for _ in range(2000):
        ColorJitter(0.4)(np.asarray(IMAGE), rng)
    orders = {tuple(name for name, _ in calls[start : start + 3]) for start in range(0, len(calls), 3)}
    assert len(orders) == 6 and all(len(set(order)) == 3 for order in orders)
    for wanted in ("brightness", "contrast", "color"):
        factors = [factor for name, factor in calls if name == wanted]
        np.testing.assert_allclose(np.quantile(factors, [0, 0.25, 0.5, 0.75, 1]), [0.6, 0.8, 1, 1.2, 1.4], atol=0.03)
    calls.clear()
    for _ in range(200):
        ColorJitter(2.0)(np.asarray(IMAGE), rng)
    assert 0 <= min(factor for _, factor in calls) < 0.1 and 2.8 < max(factor for _, factor in calls) <= 3


@pytest.mark.parametrize("strength", [0.4, 2.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_colour_jitter_by_the_library_is_pillows(channels, strength, monkeypatch):
    """Bit for bit, with factors below and above 1, also where nearly all values are clipped."""
    library = jitter.native()
    if library is None:
        pytest.skip("no C++ library")
    for seed in range(100):
        rng = np.random.default_rng(seed)
        pixels = rng.integers(0, 256, (*rng.integers(1, 20, 2), channels), np.uint8)
        before = pixels.copy()
        monkeypatch.setattr(jitter, "native", lambda: library)
        ours = ColorJitter(strength)(pixels, np.random.default_rng(seed))
        monkeypatch.setattr(jitter, "native", lambda: None)
        np.testing.assert_array_equal(ours, ColorJitter(strength)(pixels, np.random.default_rng(seed)))
        np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "'' is not one of v0, v0r, original, originalr, 3a, rand, augmix, trivial"),
        ("random-m9", "'random' is not one of v0"),
        ("rand-m", "'m' is not 'm' and a number from 0 to 1000"),
        ("rand-mx", "'mx' is not 'm' and a number"),
        ("rand-m-1", "'m' is not 'm' and a number"),
        ("rand-mnan", "'mnan' is not 'm' and a number"),
        ("rand-x9", "'x9' is none of its settings: give one of m, n, p, mstd, mmax, inc, w, t"),
        ("rand-", "'' is none of its settings"),
        ("rand-m9-m8", "'m' is given twice"),
        ("rand-n1.5", "'n1.5' is not 'n' and a whole number of 1 or more"),
        ("rand-n0", "'n0' is not 'n' and a whole number of 1 or more"),
        ("rand-p1.1", "'p1.1' is not 'p' and a number from 0 to 1"),
        ("rand-mstd", "'mstd' is not 'mstd' and a number of 0 or more"),
        ("rand-inc2", "'inc2' is not 'inc' and a whole number from 0 to 1"),
        ("rand-w1", "'w1' is not 'w' and a whole number from 0 to 0"),
        ("rand-t4a", "'t4a' is not 't' and one of weights, 3aw, 3a"),
        ("rand-tweights-w0", "'t' and 'w' both choose weights"),
        ("rand-w0-n14", "n is 13 at most"),
        ("v0-m9", "'m9' is none of its settings: give one of mstd"),
        ("augmix-n2", "'n2' is none of its settings: give one of m, w, d, a, b, mstd"),
        ("augmix-d-1", "'d' is not 'd' and a whole number of 1 or more"),
        ("trivial-m9", "'m9' is none of its settings: give nothing"),
    ],
)
def test_a_malformed_policy_is_an_error_naming_the_fault(text: str, fault: str):
    with pytest.raises(ConfigError) as raised:
        parse_policy(text)
    assert str(raised.value).startswith(f"policy {text!r}: {fault}") or fault in str(raised.value)
    assert repr(text) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "magnitude", "changed"),
    [
        ("rand", 5, "rand-m5"),
        ("rand-m9-mstd0.5-inc1", 6.25, "rand-m6.25-mstd0.5-inc1"),
        ("rand-mstd0.5-mmax15-m9", 12, "rand-m12-mstd0.5-mmax15"),
        ("rand-m9", 0.00001, "rand-m0"),
        ("augmix-w4-m3", 10, "augmix-m10-w4"),
    ],
)
def test_the_magnitude_of_a_policy_can_be_changed(text: str, magnitude: float, changed: str):
    """And nothing else: the policies are equal once they have the first one's magnitude."""
    assert with_magnitude(text, magnitude) == changed
    assert policy_magnitude(changed) == pytest.approx(magnitude, abs=1e-3)
    before = policy_magnitude(text)
    assert before is not None and parse_policy(with_magnitude(changed, before)) == parse_policy(text)


@pytest.mark.parametrize("text", ["v0", "3a-mstd0.5", "trivial"])
def test_a_policy_without_a_magnitude_says_so(text: str):
    assert policy_magnitude(text) is None
    with pytest.raises(ConfigError, match=f"^policy '{text}' has no magnitude"):
        with_magnitude(text, 5)


def test_uniform_noise_can_be_asked_for_by_name():
    policy = parse_policy("rand-mstdinf")
    assert isinstance(policy, RandAugment) and policy.noise.std == float("inf")
