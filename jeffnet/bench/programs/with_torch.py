"""timm, eager and compiled."""

import contextlib
import re
import sys
from importlib import metadata
from types import ModuleType
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from jeffnet.bench.program import LEARNING_RATE, MOMENTUM, Job, Program, UnsupportedError
from jeffnet.weights.card import ModelCard
from jeffnet.weights.naming import to_source_names
from jeffnet.weights.timm import TIMM

# Padded as TensorFlow, timm has none of the first; its EdgeTPU models stride another convolution than their authors'.
_WITHOUT_TIMM = re.compile(r"tf_(mobilenetv2|mnasnet|semnasnet|efficientnet_e[sml])")


class Eager(Program):
    """timm's model, not compiled."""

    compiles = False

    def load(self) -> None:
        import_timm()
        import torch

        torch.set_num_threads(self.job.threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def create(self) -> None:
        import torch

        job = self.job
        model = timm_model(job).to(self.device).to(memory_format=torch.channels_last)
        images = torch.from_numpy(job.pictures()).permute(0, 3, 1, 2).to(self.device)
        images = images.contiguous(memory_format=torch.channels_last)
        run = torch.compile(model) if self.compiles else model
        if job.trains:
            labels = torch.from_numpy(job.labels()).long().to(self.device)
            optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, MOMENTUM)
            self._step = lambda: self._train(run, optimizer, images, labels)
        else:
            model.eval()
            self._step = lambda: self._infer(run, images)

    def call(self) -> Any:
        import torch

        result = self._step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return result

    def answer(self, result: Any) -> np.ndarray:
        return result.detach().float().cpu().numpy()

    def describe(self) -> dict[str, Any]:
        import torch

        cuda = self.device.type == "cuda"
        return {
            "platform": "gpu" if cuda else "cpu",
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "versions": {name: metadata.version(name) for name in ("torch", "timm")},
        }

    def device_bytes(self) -> int | None:
        import torch

        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None

    def _infer(self, model: Any, images: Any) -> Any:
        import torch

        with torch.inference_mode(), self._precision():
            return model(images)

    def _train(self, model: Any, optimizer: Any, images: Any, labels: Any) -> Any:
        import torch

        with self._precision():
            logits = model(images)
        loss = torch.nn.functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    def _precision(self) -> Any:
        import torch

        if self.job.dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, getattr(torch, self.job.dtype))


class Compiled(Eager):
    """timm's model through `torch.compile`."""

    compiles = True


def timm_model(job: Job) -> Any:
    """timm's twin of the job's model, with its weights.

    Raises:
      UnsupportedError: it has none.
    """
    timm = import_timm()
    from safetensors.torch import load_file as load_tensors

    card = job.card()
    model = timm.create_model(
        timm_architecture(timm, card),
        num_classes=card.num_classes,
        in_chans=card.in_chans,
        drop_rate=0.0,
        drop_path_rate=0.0,
        global_pool=card.global_pool,
    )
    path = job.file("timm.safetensors")
    if not path.exists():
        state = to_source_names(load_file(job.file("model.safetensors")), TIMM, card.plan())
        save_file({name: np.ascontiguousarray(array) for name, array in state.items()}, path)
    model.load_state_dict(load_tensors(path))
    return model


def timm_architecture(timm: Any, card: ModelCard) -> str:
    """timm's name of an architecture; raises UnsupportedError if timm has no equal one."""
    name = card.model.partition(".")[0]
    if _WITHOUT_TIMM.match(card.model) or not timm.is_model(name) or card.output_stride != 32:
        raise UnsupportedError("timm has no such model")
    return name


def import_timm() -> ModuleType:
    """timm, also beside builds of torchvision whose compiled operators, which no model here needs, do not load."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.modules["torchvision._meta_registrations"] = ModuleType("torchvision._meta_registrations")
    import timm

    return timm
