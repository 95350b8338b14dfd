"""jeffnet's peers compute what it does; each is skipped where it is not installed."""

import pytest

from jeffnet.arch.zoo import model_preprocessing
from jeffnet.bench.contenders import CONTENDERS, PEERS
from jeffnet.bench.measure import bench
from jeffnet.bench.program import UnsupportedError
from jeffnet.bench.programs.with_torch import timm_architecture
from jeffnet.bench.settings import Settings
from jeffnet.validation.candidates import Candidate
from jeffnet.weights.card import ModelCard

pytestmark = pytest.mark.runs

# The compiler of torch takes a minute for each of these.
FOREIGN = [name for name in PEERS if name != "plain"]


def measured_of(name, contender, **options):
    if reason := CONTENDERS[contender].missing():
        pytest.skip(reason)
    settings = Settings(
        **{"batch_sizes": (4,), "image_sizes": (64,), "repeats": 1, "seconds": 1e-6, "peak": False, "fused": False}
        | {"backends": (), "compare": (contender,)}
        | options
    )
    return list(bench([Candidate(name)], settings))


@pytest.mark.slow
@pytest.mark.parametrize("contender", FOREIGN)
@pytest.mark.parametrize("name", ["tf_mobilenetv3_small_075", "tf_efficientnet_b0"])
def test_a_peer_infers_what_jeffnet_does(contender, name):
    """In float32 to rounding. Keras's own layers normalise EfficientNet's and MobileNetV3's pictures."""
    (result,) = measured_of(name, contender)
    (measured,) = result.measured
    assert not result.failures and measured.difference < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("contender", [name for name in FOREIGN if "training" in CONTENDERS[name].tasks])
def test_a_peer_trains_as_jeffnet_does(contender):
    """The loss before the first step and after it."""
    (result,) = measured_of("tf_mobilenetv3_small_075", contender, tasks=("training",), backends=("functional",))
    own, measured = result.measured
    assert not result.failures
    assert own.difference < 1e-3 and measured.difference < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("contender", ["timm", "openvino", "keras", "linen", "fused"])
def test_half_precision_agrees_within_its_rounding(contender):
    options = {"linen": {"backends": ("linen",), "compare": ()}, "fused": {"fused": True, "compare": ()}}
    (result,) = measured_of("tf_mobilenetv2_100" if contender == "keras" else "tf_mobilenetv3_small_075", contender,
                            dtypes=("bfloat16",), **options.get(contender, {}))  # fmt: skip
    if contender == "openvino" and not result.measured:
        pytest.skip(result.failures[0].reason)
    (measured,) = result.measured
    assert measured.difference > 1e-4 and result.agrees(measured)


@pytest.mark.slow
@pytest.mark.parametrize("contender", FOREIGN)
def test_a_model_that_a_peer_lacks_is_no_defect(contender):
    name = "mobilenetv2_100" if contender == "keras" else "tf_mobilenetv2_035"
    (result,) = measured_of(name, contender)
    (failure,) = result.failures
    assert failure.expected and "no such model" in failure.reason


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_timm_has_what_computes_the_same_only(timm):
    def architecture(name):
        return timm_architecture(timm, ModelCard(name, 1000, 3, model_preprocessing(name)))

    assert architecture("mobilenetv3_large_100") == "mobilenetv3_large_100"
    assert architecture("tf_efficientnet_l2.ns_jft_in1k_475") == "tf_efficientnet_l2"
    assert architecture("tf_efficientnet_b3.ap_in1k") == "tf_efficientnet_b3"
    for name in ("tf_mobilenetv2_100", "tf_efficientnet_es", "tf_mnasnet_100", "mobilenetv2_056"):
        with pytest.raises(UnsupportedError, match="no such model"):
            architecture(name)
