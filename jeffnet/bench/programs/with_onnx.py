"""Runtimes of ONNX files, which `jeffnet.export` writes."""

from importlib.metadata import version
from typing import Any

import numpy as np

from jeffnet.bench.child import Channel
from jeffnet.bench.program import Job, Program, UnsupportedError


def write_onnx_file(arguments: dict[str, Any], channel: Channel) -> None:
    """Write the model of a job as its `onnx_file`, unless it is there, and send an empty message."""
    from jeffnet.export import export_model
    from jeffnet.functional import from_pretrained

    job = Job(**arguments)
    if not job.onnx_file.exists():
        *model, card = from_pretrained(job.file("model.safetensors"))
        options = {"batch_size": job.batch_size, "image_size": job.image_size, "layout": "nchw"}
        # The answers are compared anyway.
        export_model(job.onnx_file, tuple(model), card, check=False, **options)
    channel.send({})


class OnnxRuntime(Program):
    """ONNX Runtime, on a GPU where its build has one."""

    def load(self) -> None:
        import onnxruntime  # pyright: ignore[reportMissingImports]

        onnxruntime.set_default_logger_severity(3)

    def create(self) -> None:
        if self.job.dtype != "float32":
            raise UnsupportedError(f"its exported model is float32, not {self.job.dtype}")
        self._pictures = _pictures(self.job)

    def compile(self) -> None:
        import onnxruntime  # pyright: ignore[reportMissingImports]

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.job.threads
        options.inter_op_num_threads = 1
        available = onnxruntime.get_available_providers()
        providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
        self._session = onnxruntime.InferenceSession(str(self.job.onnx_file), options, providers=providers)
        self._inputs = {self._session.get_inputs()[0].name: self._pictures}

    def call(self) -> Any:
        return self._session.run(None, self._inputs)[0]

    def describe(self) -> dict[str, Any]:
        device = "gpu" if "CUDAExecutionProvider" in self._session.get_providers() else "cpu"
        return {"platform": device, "device": device, "versions": {"onnxruntime": version("onnxruntime")}}


class OpenVino(Program):
    """OpenVINO, on the processor."""

    def load(self) -> None:
        import openvino  # pyright: ignore[reportMissingImports]

        self._core = openvino.Core()

    def create(self) -> None:
        self._precision = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[self.job.dtype]
        fast = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")  # FP32, BF16 and others
        if self._precision not in ("f32", *(name.lower().replace("fp", "f") for name in fast)):
            raise UnsupportedError(f"OpenVINO computes in no {self.job.dtype} on this processor")
        self._model = self._core.read_model(str(self.job.onnx_file))
        self._inputs = [_pictures(self.job)]

    def compile(self) -> None:
        options = {
            "INFERENCE_NUM_THREADS": self.job.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            # Its own choice is bfloat16 where the processor has it.
            "INFERENCE_PRECISION_HINT": self._precision,
        }
        self._request = self._core.compile_model(self._model, "CPU", options).create_infer_request()

    def call(self) -> Any:
        self._request.infer(self._inputs, share_inputs=True)
        return self._request.get_output_tensor(0).data

    def describe(self) -> dict[str, Any]:
        return {"platform": "cpu", "device": "cpu", "versions": {"openvino": version("openvino")}}


def _pictures(job: Job) -> np.ndarray:
    return np.ascontiguousarray(job.pictures().transpose(0, 3, 1, 2))
