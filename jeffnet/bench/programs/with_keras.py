"""keras.applications, on TensorFlow if installed, else on JAX."""

import dataclasses
from importlib import util
from typing import Any

import numpy as np

from jeffnet.bench.child import Channel
from jeffnet.bench.program import LEARNING_RATE, MOMENTUM, Job, Program, UnsupportedError
from jeffnet.errors import OutputError
from jeffnet.system.versions import version


class Keras(Program):
    """Keras's model and its own loops, `predict_on_batch` and `train_on_batch`."""

    def load(self) -> None:
        if util.find_spec("tensorflow"):
            import tensorflow as tf

            tf.config.threading.set_intra_op_parallelism_threads(self.job.threads)
        import keras

        if self.job.dtype != "float32":
            keras.config.set_dtype_policy(f"mixed_{self.job.dtype}")

    def create(self) -> None:
        import keras

        job = self.job
        model: Any = keras.saving.load_model(_keras_file(job), compile=False)
        if job.dtype != "float32":
            model = _converted(model, f"mixed_{job.dtype}")
        model.layers[-1].activation = keras.activations.linear  # logits, as of all others
        for layer in model.layers:
            if isinstance(layer, keras.layers.Dropout):
                layer.rate = 0.0
        pictures, labels = _pixels(job, model), job.labels()
        if not job.trains:
            self._step = lambda: model.predict_on_batch(pictures)
            return
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(LEARNING_RATE, MOMENTUM), loss)

        def train() -> Any:
            model.reset_metrics()
            return model.train_on_batch(pictures, labels)

        self._step = train

    def call(self) -> Any:
        return self._step()

    def describe(self) -> dict[str, Any]:
        import keras

        backend, device = keras.backend.backend(), "cpu"
        if backend == "tensorflow":
            import tensorflow as tf

            device = "gpu" if tf.config.list_physical_devices("GPU") else "cpu"
        versions = {name: version(name) for name in (backend, f"{backend}-cpu", f"{backend}_cpu")}
        package = next(({name: found} for name, found in versions.items() if found), {})
        return {"platform": device, "device": device, "versions": {"keras": keras.__version__, **package}}


def write_keras_file(arguments: dict[str, Any], channel: Channel) -> None:
    """Write the model of a job as `model_<size>.keras`, unless it is there, and send an empty message.

    Raises:
      UnsupportedError: Keras has no such model.
    """
    from safetensors.numpy import load_file

    from jeffnet.checkpoints import write_checkpoint

    job = Job(**arguments)
    card = job.card()
    card = dataclasses.replace(card, preprocessing=dataclasses.replace(card.preprocessing, image_size=job.image_size))
    path = _keras_file(job)
    if not path.exists():
        try:
            write_checkpoint(path, load_file(job.file("model.safetensors")), card, "keras")
        except OutputError as error:
            raise UnsupportedError("keras.applications has no such model") from error
    channel.send({})


def _keras_file(job: Job) -> Any:
    return job.file(f"model_{job.image_size}.keras")


def _converted(model: Any, policy: str) -> Any:
    import keras

    def clone(layer: Any) -> Any:
        config = layer.get_config()
        if isinstance(layer, keras.layers.Layer) and not isinstance(layer, keras.layers.InputLayer):
            config["dtype"] = policy
        return layer.__class__.from_config(config)

    converted: Any = keras.models.clone_model(model, clone_function=clone)
    converted.set_weights(model.get_weights())
    return converted


def _pixels(job: Job, model: Any) -> np.ndarray:
    """Pixels from which the preprocessing layers of the model make our normalised pictures."""
    import keras

    pictures, pre = job.pictures(), job.card().preprocessing
    kinds = {type(layer) for layer in model.layers}
    if keras.layers.Normalization in kinds:
        mean, std = (np.asarray(moments, np.float32) for moments in (pre.mean, pre.std))
        return (pictures * std + mean) * 255
    if keras.layers.Rescaling in kinds:
        return (pictures + 1) * np.float32(127.5)
    return pictures
