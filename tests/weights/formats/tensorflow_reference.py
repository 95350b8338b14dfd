"""The papers' authors' networks in plain TensorFlow operations, under the names of their variables.

Written from tensorflow/tpu (efficientnet_model.py, mnasnet_model.py, mixnet_model.py), google/automl
(effnetv2_model.py) and tensorflow/models (slim's mobilenet_v3.py): block strings are the authors', strides are where
they put them, padding is TensorFlow's own.
"""

import re
from collections import defaultdict
from contextlib import contextmanager

import numpy as np
import tensorflow as tf


def _round(channels, divisor=8):
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def _hard_swish(x):
    return x * tf.nn.relu6(x + 3) / 6


class Network:
    """Layers that make their variables at the first call, when running statistics become those of the batch."""

    def __init__(self, seed=0, norm="tpu_batch_normalization", epsilon=1e-3):
        self.rng = np.random.default_rng(seed)
        self.variables = {}
        self.norm_name = norm
        self.epsilon = epsilon
        self.scopes = []
        self.counters = defaultdict(int)

    @contextmanager
    def scope(self, name):
        self.scopes.append(name)
        yield
        self.scopes.pop()

    def start(self):
        """Layers are counted anew at each call of the network."""
        self.counters.clear()

    def _layer(self, kind):
        """TensorFlow's own numbering within a scope: conv2d, conv2d_1 ..."""
        scope = "/".join(self.scopes)
        number = self.counters[scope, kind]
        self.counters[scope, kind] += 1
        return f"{scope}/{kind}" + (f"_{number}" if number else "")

    def _variable(self, name, make):
        if name not in self.variables:
            self.variables[name] = tf.Variable(make())
        return self.variables[name]

    def _kernel(self, name, shape):
        fan_in = shape[0] * shape[1] * (1 if "depthwise" in name else shape[2])
        return self._variable(name, lambda: self.rng.normal(size=shape) * np.sqrt(2 / fan_in))

    def _bias(self, name, width):
        return self._variable(name, lambda: self.rng.normal(size=width) * 0.1)

    def conv(self, x, width, kernel, stride=1, bias=False, slim=None):
        layer = "/".join([*self.scopes, slim]) if slim else self._layer("conv2d")
        weights = self._kernel(f"{layer}/{'weights' if slim else 'kernel'}", (kernel, kernel, x.shape[-1], width))
        x = tf.nn.conv2d(x, weights, stride, "SAME")
        return x + self._bias(f"{layer}/{'biases' if slim else 'bias'}", width) if bias else x

    def depthwise(self, x, kernel, stride=1, slim=None):
        layer = "/".join([*self.scopes, slim]) if slim else self._layer("depthwise_conv2d")
        name = f"{layer}/{'depthwise_weights' if slim else 'depthwise_kernel'}"
        weights = self._kernel(name, (kernel, kernel, x.shape[-1], 1))
        return tf.nn.depthwise_conv2d(x, weights, [1, stride, stride, 1], "SAME")

    def norm(self, x, slim=None):
        layer = "/".join([*self.scopes, slim, "BatchNorm"]) if slim else self._layer(self.norm_name)
        width = x.shape[-1]
        mean, variance = tf.nn.moments(x, [0, 1, 2])
        gamma = self._variable(f"{layer}/gamma", lambda: self.rng.uniform(0.5, 1.5, width))
        beta = self._bias(f"{layer}/beta", width)
        moving_mean = self._variable(
            f"{layer}/moving_mean", lambda: mean.numpy() + 0.1 * np.sqrt(variance.numpy()) * self.rng.normal(size=width)
        )
        moving_variance = self._variable(
            f"{layer}/moving_variance", lambda: variance.numpy() * self.rng.uniform(0.8, 1.3, width)
        )
        return (x - moving_mean) / tf.sqrt(moving_variance + self.epsilon) * gamma + beta

    def dense(self, x, width):
        layer = self._layer("dense")
        weights = self._variable(
            f"{layer}/kernel", lambda: self.rng.normal(size=(x.shape[-1], width)) / np.sqrt(x.shape[-1])
        )
        return x @ weights + self._bias(f"{layer}/bias", width)


def _options(text):
    """`r1_k3_s11_e1_i32_o16_se0.25` as a dictionary of texts."""
    options = {"words": set()}
    for word in text.split("_"):
        found = re.fullmatch(r"(se|[a-z])([\d.]+)", word)
        if found:
            options[found[1]] = found[2]
        else:
            options["words"].add(word)
    return options


def _split(width, parts):
    share = [width // parts] * parts
    share[0] += width - sum(share)
    return share


def _mixed(x, kernels, apply, widths=None):
    """Channels split between kernels, the first taking what is left over."""
    inputs = tf.split(x, _split(x.shape[-1], len(kernels)), -1) if len(kernels) > 1 else [x]
    widths = widths or [None] * len(kernels)
    return tf.concat(
        [apply(part, kernel, width) for part, kernel, width in zip(inputs, kernels, widths, strict=True)], -1
    )


def searched(net, images, root, blocks, *, stem=32, features=1280, act=tf.nn.relu, classes=7, mnas="", fused=False):
    """EfficientNet, Lite, EdgeTPU, MNASNet, MixNet or, with `fused`, EfficientNetV2: logits."""
    net.start()
    with net.scope(root):
        with net.scope(f"{mnas}stem"):
            x = act(net.norm(net.conv(images, stem, 3, 2)))
        place = 0
        for text in blocks:
            options = _options(text)
            for repeat in range(int(options["r"])):
                with net.scope(f"{mnas}blocks_{place}"):
                    source = int(options["i"]) if repeat == 0 else int(options["o"])
                    x = _block(net, x, options, source, int(options["s"][0]) if repeat == 0 else 1, act, fused)
                place += 1
        with net.scope(f"{mnas}head"):
            x = act(net.norm(net.conv(x, features, 1)))
            return net.dense(tf.reduce_mean(x, [1, 2]), classes)


def _block(net, x, options, source, stride, act, fused):
    inputs, expansion = x, int(options["e"])
    width, expanded = int(options["o"]), source * expansion
    if "sw" in options["words"]:
        act = tf.nn.silu
    kernels = [int(kernel) for kernel in options["k"].split(".")]
    expand, project = ([int(kernel) for kernel in options.get(key, "1").split(".")] for key in "ap")
    if options.get("c") == "1" and fused:
        # EfficientNetV2: the first convolution has the stride; without expansion there is no other.
        x = act(net.norm(net.conv(x, expanded if expansion > 1 else width, kernels[0], stride)))
        if expansion > 1:
            x = net.norm(net.conv(x, width, 1))
    elif options.get("c") == "1":
        # EdgeTPU: a full convolution expands, and the projection has the stride.
        x = act(net.norm(net.conv(x, expanded, kernels[0])))
        x = net.norm(net.conv(x, width, 1, stride))
    else:
        if expansion != 1:
            widths = _split(expanded, len(expand))
            x = act(net.norm(_mixed(x, expand, lambda part, kernel, out: net.conv(part, out, kernel), widths)))
        x = act(net.norm(_mixed(x, kernels, lambda part, kernel, _: net.depthwise(part, kernel, stride))))
        if "se" in options:
            with net.scope("se"):
                squeezed = tf.reduce_mean(x, [1, 2], keepdims=True)
                squeezed = act(net.conv(squeezed, max(1, int(source * float(options["se"]))), 1, bias=True))
                x *= tf.sigmoid(net.conv(squeezed, expanded, 1, bias=True))
        widths = _split(width, len(project))
        x = net.norm(_mixed(x, project, lambda part, kernel, out: net.conv(part, out, kernel), widths))
    if "noskip" not in options["words"] and stride == 1 and inputs.shape[-1] == width:
        x += inputs
    return x


# Expansion, width, kernel, stride, squeeze-and-excitation, activation: slim's table.
_SMALL = (
    (1, 16, 3, 2, True, tf.nn.relu),
    (72 / 16, 24, 3, 2, False, tf.nn.relu),
    (88 / 24, 24, 3, 1, False, tf.nn.relu),
    (4, 40, 5, 2, True, _hard_swish),
    (6, 40, 5, 1, True, _hard_swish),
    (6, 40, 5, 1, True, _hard_swish),
    (3, 48, 5, 1, True, _hard_swish),
    (3, 48, 5, 1, True, _hard_swish),
    (6, 96, 5, 2, True, _hard_swish),
    (6, 96, 5, 1, True, _hard_swish),
    (6, 96, 5, 1, True, _hard_swish),
)


# MobileNetV2's repetitions written out; the first block does not expand.
_V2 = tuple(
    (expansion, width, 3, stride if repeat == 0 else 1, False, tf.nn.relu6)
    for expansion, width, repeats, stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    for repeat in range(repeats)
)


def mobilenet_v3_small(net, images, classes=7, root="MobilenetV3"):
    """slim's MobileNetV3-Small: logits."""
    net.start()
    with net.scope(root):
        x = _hard_swish(net.norm(net.conv(images, 16, 3, 2, slim="Conv"), slim="Conv"))
        x = _expanded_convs(net, x, _SMALL)
        x = _hard_swish(net.norm(net.conv(x, 576, 1, slim="Conv_1"), slim="Conv_1"))
        x = tf.reduce_mean(x, [1, 2], keepdims=True)
        x = _hard_swish(net.conv(x, 1024, 1, bias=True, slim="Conv_2"))
        return net.conv(x, classes, 1, bias=True, slim="Logits/Conv2d_1c_1x1")[:, 0, 0]


def mobilenet_v2(net, images, classes=7, root="MobilenetV2"):
    """slim's MobileNetV2: logits."""
    net.start()
    with net.scope(root):
        x = tf.nn.relu6(net.norm(net.conv(images, 32, 3, 2, slim="Conv"), slim="Conv"))
        x = _expanded_convs(net, x, _V2)
        x = tf.nn.relu6(net.norm(net.conv(x, 1280, 1, slim="Conv_1"), slim="Conv_1"))
        x = tf.reduce_mean(x, [1, 2], keepdims=True)
        return net.conv(x, classes, 1, bias=True, slim="Logits/Conv2d_1c_1x1")[:, 0, 0]


def _expanded_convs(net, x, table):
    for place, (expansion, width, kernel, stride, squeeze, act) in enumerate(table):
        with net.scope("expanded_conv" + (f"_{place}" if place else "")):
            inputs, expanded = x, _round(x.shape[-1] * expansion)
            if expanded > x.shape[-1]:
                x = act(net.norm(net.conv(x, expanded, 1, slim="expand"), slim="expand"))
            x = act(net.norm(net.depthwise(x, kernel, stride, slim="depthwise"), slim="depthwise"))
            if squeeze:
                with net.scope("squeeze_excite"):
                    squeezed = tf.reduce_mean(x, [1, 2], keepdims=True)
                    squeezed = tf.nn.relu(net.conv(squeezed, _round(expanded / 4), 1, bias=True, slim="Conv"))
                    x *= tf.nn.relu6(net.conv(squeezed, expanded, 1, bias=True, slim="Conv_1") + 3) / 6
            x = net.norm(net.conv(x, width, 1, slim="project"), slim="project")
            if stride == 1 and inputs.shape[-1] == width:
                x += inputs
    return x


EFFICIENTNET_B0 = (
    "r1_k3_s11_e1_i32_o16_se0.25",
    "r2_k3_s22_e6_i16_o24_se0.25",
    "r2_k5_s22_e6_i24_o40_se0.25",
    "r3_k3_s22_e6_i40_o80_se0.25",
    "r3_k5_s11_e6_i80_o112_se0.25",
    "r4_k5_s22_e6_i112_o192_se0.25",
    "r1_k3_s11_e6_i192_o320_se0.25",
)
LITE0 = tuple(text.removesuffix("_se0.25") for text in EFFICIENTNET_B0)
EDGETPU_S = (
    "r1_k3_s11_e4_i24_o24_c1_noskip",
    "r2_k3_s22_e8_i24_o32_c1",
    "r4_k3_s22_e8_i32_o48_c1",
    "r5_k5_s22_e8_i48_o96",
    "r4_k5_s11_e8_i96_o144",
    "r2_k5_s22_e8_i144_o192",
)
EFFICIENTNETV2_B0 = (
    "r1_k3_s1_e1_i32_o16_c1",
    "r2_k3_s2_e4_i16_o32_c1",
    "r2_k3_s2_e4_i32_o48_c1",
    "r3_k3_s2_e4_i48_o96_se0.25",
    "r5_k3_s1_e6_i96_o112_se0.25",
    "r8_k3_s2_e6_i112_o192_se0.25",
)
EFFICIENTNETV2_S = (
    "r2_k3_s1_e1_i24_o24_c1",
    "r4_k3_s2_e4_i24_o48_c1",
    "r4_k3_s2_e4_i48_o64_c1",
    "r6_k3_s2_e4_i64_o128_se0.25",
    "r9_k3_s1_e6_i128_o160_se0.25",
    "r15_k3_s2_e6_i160_o256_se0.25",
)
MNASNET_A1 = (
    "r1_k3_s11_e1_i32_o16_noskip",
    "r2_k3_s22_e6_i16_o24",
    "r3_k5_s22_e3_i24_o40_se0.25",
    "r4_k3_s22_e6_i40_o80",
    "r2_k3_s11_e6_i80_o112_se0.25",
    "r3_k5_s22_e6_i112_o160_se0.25",
    "r1_k3_s11_e6_i160_o320",
)
MNASNET_B1 = (
    "r1_k3_s11_e1_i32_o16_noskip",
    "r3_k3_s22_e3_i16_o24",
    "r3_k5_s22_e3_i24_o40",
    "r3_k5_s22_e6_i40_o80",
    "r2_k3_s11_e6_i80_o96",
    "r4_k5_s22_e6_i96_o192",
    "r1_k3_s11_e6_i192_o320_noskip",
)
MIXNET_S = (
    "r1_k3_a1_p1_s11_e1_i16_o16",
    "r1_k3_a1.1_p1.1_s22_e6_i16_o24",
    "r1_k3_a1.1_p1.1_s11_e3_i24_o24",
    "r1_k3.5.7_a1_p1_s22_e6_i24_o40_se0.5_sw",
    "r3_k3.5_a1.1_p1.1_s11_e6_i40_o40_se0.5_sw",
    "r1_k3.5.7_a1_p1.1_s22_e6_i40_o80_se0.25_sw",
    "r2_k3.5_a1_p1.1_s11_e6_i80_o80_se0.25_sw",
    "r1_k3.5.7_a1.1_p1.1_s11_e6_i80_o120_se0.5_sw",
    "r2_k3.5.7.9_a1.1_p1.1_s11_e3_i120_o120_se0.5_sw",
    "r1_k3.5.7.9.11_a1_p1_s22_e6_i120_o200_se0.5_sw",
    "r2_k3.5.7.9_a1_p1.1_s11_e6_i200_o200_se0.5_sw",
)
