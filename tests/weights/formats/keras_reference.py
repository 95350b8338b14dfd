"""Files that Keras writes, and what Keras computes with them; run by tests, with one of its backends in a process.

    KERAS_BACKEND=jax python keras_reference.py FOLDER RANDOM CASE...

RANDOM is the folder of the backend that ran first, whose values the second takes, or '' to draw them. For each case the
folder then has `CASE.keras`, `CASE.weights.h5` and `CASE.h5`, in float32, and `CASE.npz`: `pictures`; `outputs` before
the softmax, in float64, of the file's values and the pictures after `preprocess_input`; and in float32 `probabilities`.
"""

import sys
import warnings
from pathlib import Path

import h5py
import keras
import numpy as np
from keras.src.backend.common import dtypes
from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group
from keras.src.utils import file_utils

from jeffnet.arch.preprocessing import IMAGENET_MEAN, IMAGENET_STD

# Family, model, input shape and options; with odd sizes on the way, where the padding depends on them.
CASES = {
    "b0": ("efficientnet", "EfficientNetB0", (65, 65, 3), {}),
    "b1": ("efficientnet", "EfficientNetB1", (64, 64, 1), {}),
    "b3": ("efficientnet", "EfficientNetB3", (71, 96, 3), {}),
    **{
        f"e2_{size}": ("efficientnet_v2", f"EfficientNetV2{size.upper()}", (65, 65, 3), {})
        for size in ("b0", "b1", "b2", "b3", "s", "m", "l")
    },
    "v2_035": ("mobilenet_v2", "MobileNetV2", (71, 71, 3), {"alpha": 0.35}),
    "v2_056": ("mobilenet_v2", "MobileNetV2", (64, 47, 3), {"alpha": 0.56}),
    "v2_130": ("mobilenet_v2", "MobileNetV2", (64, 64, 3), {"alpha": 1.3}),
    "v3_small": ("mobilenet_v3", "MobileNetV3Small", (75, 75, 3), {}),
    "v3_small_075": ("mobilenet_v3", "MobileNetV3Small", (75, 64, 3), {"alpha": 0.75}),
    "v3_small_minimal": ("mobilenet_v3", "MobileNetV3Small", (64, 64, 3), {"minimalistic": True}),
    "v3_large": ("mobilenet_v3", "MobileNetV3Large", (65, 65, 3), {}),
    "v3_large_075": ("mobilenet_v3", "MobileNetV3Large", (64, 64, 3), {"alpha": 0.75}),
    "v3_large_minimal": ("mobilenet_v3", "MobileNetV3Large", (65, 65, 3), {"minimalistic": True}),
}
CLASSES = 7


def main(folder, random, *cases):
    # Initial values are replaced at once, and drawing them takes longer than all the rest with JAX.
    keras.initializers.VarianceScaling.__call__ = lambda self, shape, dtype=None, **_: np.zeros(shape, dtype)
    # With JAX, Keras takes BatchNorm's inputs for float32 even where they are float64.
    dtypes.BIT64_TO_BIT32_DTYPE["float64"] = "float64"
    for case in cases:
        {"published": published, "around": around, "heads": heads}.get(case, plain)(case, Path(folder), random)


def plain(case, folder, random):
    family, name, shape, options = CASES[case]
    options = {**options, "weights": None, "classes": CLASSES, "input_shape": shape}
    pictures, inputs = _pictures(family, shape)
    model = _built("float32", name, **options)
    exact = _built("float64", name, **options, classifier_activation=None)
    if random:
        model.load_weights(Path(random, f"{case}.weights.h5"))
    else:
        _randomize(exact, inputs)
        model.set_weights(exact.get_weights())
    exact.set_weights([np.asarray(value, np.float64) for value in model.get_weights()])
    _save(model, folder, case)
    _record(folder, case, pictures, outputs=_predict(exact, inputs), probabilities=_predict(model, inputs))


def published(case, folder, random):
    """As with weights='imagenet': more is in the network than a file of weights alone tells; all in float64."""
    pictures, inputs = _pictures("efficientnet", (64, 64, 3))
    options = {"include_top": False, "pooling": "avg", "input_shape": (64, 64, 3)}
    fresh = _built("float64", "EfficientNetB0", **options, weights=None)
    _randomize(fresh, inputs)
    normalization = next(layer for layer in fresh.layers if isinstance(layer, keras.layers.Normalization))
    normalization.set_weights([np.array(IMAGENET_MEAN), np.array(IMAGENET_STD), np.zeros((), int)])
    path = folder / f"{case}_weights_alone.h5"
    with h5py.File(path, "w") as file:
        save_weights_to_hdf5_group(file, fresh)
    file_utils.get_file = lambda *args, **options: str(path)
    model = _built("float64", "EfficientNetB0", **options, weights="imagenet")
    _save(model, folder, case)
    _record(folder, case, pictures, outputs=_predict(model, inputs))


def around(case, folder, random):
    """A model of keras.applications without its top, in another model with a classifier."""
    pictures, inputs = _pictures(None, (64, 64, 3))
    base = _built("float64", "MobileNetV2", weights=None, include_top=False, input_shape=(64, 64, 3), alpha=0.35)
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((64, 64, 3)), layers.RandomFlip(), layers.Rescaling(1 / 127.5, -1), base,
            layers.GlobalAveragePooling2D(), layers.Dropout(0.2), layers.Dense(CLASSES, name="of_mine"),
        ]
    )  # fmt: skip
    _randomize(base, inputs / 127.5 - 1)
    base.trainable = False
    model.layers[-1].set_weights(
        [np.random.default_rng(2).normal(size=value.shape) for value in model.layers[-1].weights]
    )
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    _save(model, folder, case)
    _record(folder, case, pictures, outputs=_predict(model, inputs))


def heads(case, folder, random):
    """One network with other layers before and after it; what Keras computes where ours should do so too."""
    pictures, inputs = _pictures(None, (33, 33, 3))
    base = _built("float64", "MobileNetV2", weights=None, include_top=False, input_shape=(33, 33, 3), alpha=0.35)
    _randomize(base, inputs / 127.5 - 1)
    layers, results = keras.layers, {}
    pool = layers.GlobalAveragePooling2D
    scaled = [layers.Rescaling(1 / 127.5, -1)]

    def dense(*options, units=CLASSES, **more):
        return layers.Dense(units, *options, kernel_initializer=keras.initializers.RandomNormal(seed=1), **more)

    same = {
        "softmax": (scaled, [pool(), dense("softmax")]),
        "linear": (scaled, [pool(), layers.Dropout(0.5), dense()]),
        "activation": (scaled, [pool(), layers.Flatten(), dense(), layers.Activation("softmax")]),
        "rescaled": ([layers.Rescaling(1 / 255)], [pool(), dense("softmax")]),
        "twice": (
            [layers.Rescaling(1 / 255), layers.Rescaling([2.0, 3.0, 4.0], [0.1, 0.2, -1.0])],
            [pool(), dense("softmax")],
        ),
        "normalized": (
            [layers.Normalization(mean=[120.0, 110.0, 100.0], variance=[3000.0, 3500.0, 4000.0])],
            [pool(), dense("softmax")],
        ),
        "augmented": (
            [keras.Sequential([layers.RandomFlip(), layers.RandomRotation(0.1)]), *scaled],
            [pool(), dense("softmax")],
        ),
        "headless": (scaled, [pool()]),
    }  # fmt: skip
    others = {
        "max": (scaled, [layers.GlobalMaxPooling2D(name="culprit"), dense("softmax")]),
        "sigmoid": (scaled, [pool(), dense("sigmoid", units=1, name="culprit")]),
        "sigmoids": (scaled, [pool(), dense("sigmoid", name="culprit")]),
        "sigmoid_after": (scaled, [pool(), dense(), layers.Activation("sigmoid", name="culprit")]),
        "two_dense": (scaled, [pool(), dense("relu", name="culprit"), dense("softmax")]),
        "norm": (scaled, [pool(), layers.BatchNormalization(name="culprit"), dense("softmax")]),
        "relu": (scaled, [pool(), layers.ReLU(name="culprit"), dense("softmax")]),
        "twice_softmax": (scaled, [pool(), dense("softmax"), layers.Softmax(name="culprit")]),
        "unpooled": (scaled, [layers.Flatten(name="culprit"), dense("softmax")]),
        "output_scaled": (scaled, [pool(), dense("softmax"), layers.Rescaling(2.0, name="culprit")]),
        "resized": ([layers.Resizing(33, 33, name="culprit"), *scaled], [pool(), dense("softmax")]),
        "negative": ([layers.Rescaling(-1.0)], [pool(), dense("softmax")]),
    }
    for name, (before, after) in {**same, **others}.items():
        model = keras.Sequential([layers.Input((33, 33, 3)), *before, base, *after])
        model.save(folder / f"{case}_{name}.keras")
        if name in ("two_dense", "norm", "sigmoid"):  # layers that a file of weights alone tells
            model.save_weights(folder / f"{case}_{name}.weights.h5")
        if name in same:
            results[name] = _predict(model, inputs)
    _record(folder, case, pictures, **results)


def _pictures(family, shape):
    pictures = np.random.default_rng(0).integers(0, 256, (2, *shape), np.uint8)
    preprocess = getattr(keras.applications, family).preprocess_input if family else np.asarray
    return pictures, preprocess(pictures.astype(np.float64))


def _built(dtype, name, **options):
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    return getattr(keras.applications, name)(**options)


def _save(model, folder, case):
    model.save(folder / f"{case}.keras")
    model.save_weights(folder / f"{case}.weights.h5")
    model.save(folder / f"{case}.h5")


def _record(folder, case, pictures, **results):
    np.savez(folder / f"{case}.npz", pictures=pictures, **results)


def _predict(model, inputs):
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # as after loading
            if layer.input_mean is not None:  # which was a float32 tensor for a while
                shape = (1, 1, 1, -1)
                layer.mean = np.reshape(layer.input_mean, shape).astype(inputs.dtype)
                layer.variance = np.reshape(layer.input_variance, shape).astype(inputs.dtype)
        if isinstance(layer, keras.layers.Rescaling):
            # TensorFlow makes Python's numbers float32 before they are cast to float64.
            layer.scale, layer.offset = (np.asarray(number, inputs.dtype) for number in (layer.scale, layer.offset))
    model.run_eagerly = keras.backend.backend() == "tensorflow"
    return model.predict(inputs.astype(model.dtype_policy.compute_dtype), verbose=0)


def _randomize(model, inputs):
    """Random weights; running statistics around those of a batch, so that nothing grows without bounds."""
    rng = np.random.default_rng(1)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization) and layer.weights:
            channels = layer.weights[0].shape[-1]
            layer.set_weights([rng.uniform(0.3, 0.6, channels), rng.uniform(0.04, 0.1, channels), np.zeros((), int)])
            layer.finalize_state()
        elif layer in norms:
            layer.momentum = 0.0
            layer.gamma.assign(rng.uniform(0.5, 1.5, layer.gamma.shape))
            layer.beta.assign(rng.normal(0, 0.1, layer.beta.shape))
        elif layer.weights:
            kernel, *bias = (value.shape for value in layer.weights)
            depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
            fan_in = np.prod(kernel[:2] if depthwise else kernel[:-1])
            layer.set_weights([rng.normal(0, np.sqrt(2 / fan_in), kernel), *(rng.normal(0, 0.1, b) for b in bias)])
    model(np.concatenate([inputs, inputs[:, ::-1], inputs[:, :, ::-1]]), training=True)
    for norm in norms:
        # Relative to what a channel varies by: in a deep network anything else grows from layer to layer.
        noise = rng.normal(0, 0.1, norm.moving_mean.shape) * np.sqrt(np.asarray(norm.moving_variance))
        norm.moving_mean.assign(np.asarray(norm.moving_mean) + noise)
        norm.moving_variance.assign(np.asarray(norm.moving_variance) * rng.uniform(0.8, 1.3, norm.moving_mean.shape))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(*sys.argv[1:])
