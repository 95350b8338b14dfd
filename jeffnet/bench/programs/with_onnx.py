"""Runtimes of ONNX files, which timm's model is exported to."""

from importlib import metadata
from typing import Any

import numpy as np

from jeffnet.bench.program import Job, Program, UnsupportedError


class OnnxRuntime(Program):
    """ONNX Runtime, on a GPU where its build has one."""

    def load(self) -> None:
        import onnxruntime  # pyright: ignore[reportMissingImports]

        onnxruntime.set_default_logger_severity(3)

    def create(self) -> None:
        if self.job.dtype != "float32":
            raise UnsupportedError(f"its exported model is float32, not {self.job.dtype}")
        self._inputs = {"images": _pictures(self.job)}

    def compile(self) -> None:
        import onnxruntime  # pyright: ignore[reportMissingImports]

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.job.threads
        options.inter_op_num_threads = 1
        available = onnxruntime.get_available_providers()
        providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
        self._session = onnxruntime.InferenceSession(str(_onnx_file(self.job)), options, providers=providers)

    def call(self) -> Any:
        return self._session.run(None, self._inputs)[0]

    def answer(self, result: Any) -> np.ndarray:
        return np.asarray(result, np.float32)

    def describe(self) -> dict[str, Any]:
        gpu = "CUDAExecutionProvider" in self._session.get_providers()
        return {
            "platform": "gpu" if gpu else "cpu",
            "device": "gpu" if gpu else "cpu",
            "versions": {"onnxruntime": metadata.version("onnxruntime")},
        }


class OpenVino(Program):
    """OpenVINO, on the processor."""

    def load(self) -> None:
        import openvino  # pyright: ignore[reportMissingImports]

        self._core = openvino.Core()

    def create(self) -> None:
        precision = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[self.job.dtype]
        if precision not in ("f32", *_fast_precisions(self._core)):
            raise UnsupportedError(f"OpenVINO computes in no {self.job.dtype} on this processor")
        self._model = self._core.read_model(str(_onnx_file(self.job)))
        self._inputs = [_pictures(self.job)]
        self._precision = precision

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

    def answer(self, result: Any) -> np.ndarray:
        return np.array(result, np.float32)

    def describe(self) -> dict[str, Any]:
        return {"platform": "cpu", "device": "cpu", "versions": {"openvino": metadata.version("openvino")}}


def _fast_precisions(core: Any) -> list[str]:
    named = {"BF16": "bf16", "FP16": "f16"}
    return [named[name] for name in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") if name in named]


def _pictures(job: Job) -> np.ndarray:
    return np.ascontiguousarray(job.pictures().transpose(0, 3, 1, 2))


def _onnx_file(job: Job) -> Any:
    return job.file(f"model_{job.image_size}_{job.batch_size}.onnx")
