"""Exported files in their own runtimes."""

from typing import Any

import numpy as np

from jeffnet.bench.program import Program, UnsupportedError


class Exported(Program):
    """A file that `jeffnet export` has written, or another ONNX or TFLite file of the same model."""

    def load(self) -> None:
        from jeffnet.export import run

        self._run = run

    def create(self) -> None:
        job = self.job
        assert job.exported
        if job.dtype != "float32":
            raise UnsupportedError(f"its dtype is its own, not {job.dtype}: see the rows of float32")
        model = self._run.open_exported(job.exported, job.card().architecture, job.threads)
        if (job.image_size, job.image_size) != model.image_size:
            raise UnsupportedError(f"it takes pictures of {model.image_size}, not {job.image_size}")
        if model.batch_size not in (None, job.batch_size):
            raise UnsupportedError(f"it takes batches of {model.batch_size}, not {job.batch_size}")
        if model.card.model != job.model or model.card.num_classes != job.card().num_classes:
            raise UnsupportedError(f"it is of {model.card.model} with {model.card.num_classes} classes")
        if model.takes_pixels or model.gives_probabilities:
            raise UnsupportedError("it normalises or has a softmax, which the others do not: export it without")
        pictures = job.pictures()
        nchw = model.layout == "nchw"
        self._images = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)) if nchw else pictures
        self._model = model

    def call(self) -> Any:
        return self._model.runner(self._images)

    def describe(self) -> dict[str, Any]:
        name, _, version = self._model.runner.runtime.rpartition(" ")
        return {"platform": "cpu", "device": "cpu", "versions": {name: version}, "dtype": self._model.dtype}
