"""How training scales over the devices of a host: throughput, and what the compiled step sends between them.

Each number of devices is a process of its own. A CPU is one device: there they are virtual ones, which share the
processors, so that the program is that of as many devices, but the speed says nothing.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from jeffnet.bench.child import Channel, ChildError, run
from jeffnet.bench.measure import setting_of
from jeffnet.bench.settings import Settings
from jeffnet.errors import ConfigError, JeffnetError

# Steps that are timed at least.
_LEAST_STEPS = 2
_VIRTUAL_DEVICES = 8


@dataclass(frozen=True, kw_only=True)
class ScalingJob:
    """A training step on a number of devices.

    Attributes:
      batch_size: of all devices together.
      image_size: height and width in pixels; None takes the model's.
      bn_devices: see `jeffnet.train.config.ModelConfig`; None for the whole batch.
      fsdp: over how many devices the state is split.
      seconds: time for which steps are measured, at least.
    """

    model: str
    devices: int
    batch_size: int
    image_size: int | None
    dtype: str
    backend: str
    bn_devices: int | None
    fsdp: int
    seconds: float


@dataclass(frozen=True)
class ScalingResult:
    """Measurements of a job.

    Attributes:
      images_per_second: of all devices together.
      sent: by kind of collective, how many a step runs and the bytes that each device sends by them.
      virtual: whether the devices are virtual ones of a CPU.
    """

    job: ScalingJob
    images_per_second: float
    sent: dict[str, tuple[int, float]]
    virtual: bool


def default_counts(platform: str, devices: int) -> tuple[int, ...]:
    """1, 2, 4 and so on up to the number of devices, or of virtual ones on a CPU."""
    most = _VIRTUAL_DEVICES if platform == "cpu" and devices == 1 else devices
    return tuple(dict.fromkeys([*(2**power for power in range(most.bit_length())), most]))


def measure_scaling(
    job: ScalingJob,
    counts: Sequence[int],
    settings: Settings,
    available: tuple[str, int],
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[tuple[str, ScalingResult]]:
    """Weak scaling, with constant work per device, and strong scaling, with constant work in total.

    Args:
      job: of one device; `batch_size` is per device, in strong scaling of the largest number of devices.
      counts: numbers of devices.
      settings: environment of the processes.
      available: platform and number of devices, from `jeffnet.bench.measure.count_devices`.
      say: called with a line for each measurement.

    Yields:
      'weak' or 'strong', and a result.

    Raises:
      ConfigError: there are not so many devices, or groups of them do not fit a number.
      JeffnetError: a process failed.
    """
    platform, devices = available
    virtual = platform == "cpu" and devices < max(counts)
    if not virtual and max(counts) > devices:
        raise ConfigError(f"--devices {max(counts)}: there are {devices}")
    for count in counts:
        for name, group in (("--bn-devices", job.bn_devices), ("--fsdp", job.fsdp)):
            if group and count % group and count > group:
                raise ConfigError(f"{name} {group} does not divide {count} devices: choose --devices among multiples")
    whole = job.batch_size * max(counts)
    known: dict[ScalingJob, ScalingResult] = {}
    for kind in ("weak", "strong"):
        for count in counts:
            part = replace(
                job,
                devices=count,
                batch_size=job.batch_size * count if kind == "weak" else whole,
                bn_devices=job.bn_devices and min(job.bn_devices, count),
                fsdp=min(job.fsdp, count),
            )
            if part not in known:
                say(f"{part.model}: {kind} scaling, {count} devices, batch {part.batch_size}")
                known[part] = _measured(part, settings, virtual)
            yield kind, known[part]


def _measured(job: ScalingJob, settings: Settings, virtual: bool) -> ScalingResult:
    given = os.environ.get("XLA_FLAGS", "")
    flags = {"XLA_FLAGS": f"{given} --xla_force_host_platform_device_count={job.devices}"} if virtual else {}
    try:
        reply = run("jeffnet.bench.scaling:serve", asdict(job), setting_of(settings, flags))
    except ChildError as error:
        raise JeffnetError(f"{job.model} on {job.devices} devices: {error}") from error
    sent = {kind: (count, sent) for kind, (count, sent) in reply["sent"].items()}
    return ScalingResult(job, reply["images_per_second"], sent, virtual)


# ------------------------------------------------------------------------------------------- what the processes do


def serve(arguments: dict[str, Any], channel: Channel) -> None:
    """Compile a training step, read what it sends, and time it."""
    import jax

    from jeffnet.bench.communication import by_kind, collectives

    job = ScalingJob(**arguments)
    step, state, batch = build_step(job)
    compiled = step.func.lower(*step.args, state, batch).compile()
    sent = by_kind(collectives(compiled.as_text() or ""))
    state, metrics = compiled(*step.args, state, batch)
    jax.block_until_ready(metrics)
    steps, start = 0, time.perf_counter()
    while steps < _LEAST_STEPS or time.perf_counter() - start < job.seconds:
        state, metrics = compiled(*step.args, state, batch)
        jax.block_until_ready(metrics)
        steps += 1
    seconds = time.perf_counter() - start
    channel.send({"images_per_second": steps * job.batch_size / seconds, "sent": sent})


def build_step(job: ScalingJob) -> tuple[Any, Any, Any]:
    """A training step, its state and a batch, placed on the mesh."""
    import jax.numpy as jnp
    import numpy as np

    from jeffnet.arch.zoo import model_preprocessing
    from jeffnet.parallel.mesh import make_layout
    from jeffnet.train.config import Config, DataConfig, ModelConfig, OptimizerConfig
    from jeffnet.train.network import frozen_parameters, make_network
    from jeffnet.train.optim import make_optimizer
    from jeffnet.train.state import initial_state
    from jeffnet.train.step import make_train_step
    from jeffnet.weights.start import start_arrays, statistics

    model = ModelConfig(name=job.model, backend=job.backend, dtype=job.dtype, bn_devices=job.bn_devices)
    config = Config(
        model=model,
        data=DataConfig(path="none"),
        optimizer=OptimizerConfig(name="rmsproptf", learning_rate=1e-3),
        batch_size=job.batch_size,
    )
    preprocessing = model_preprocessing(job.model)
    layout = make_layout(f"data={job.devices // job.fsdp},fsdp={job.fsdp}")
    network = make_network(model, preprocessing, 1000).shared_by(layout.devices, job.bn_devices)
    arrays = start_arrays(network.plan, 0, network.compute_dtype)
    trained = {name: array for name, array in arrays.items() if name not in statistics(arrays)}
    optimizer = make_optimizer(
        config.optimizer, lambda step: jnp.float32(1e-3), trained, frozen_parameters(network.plan, ())
    )
    size, rng = job.image_size or preprocessing.image_size, np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (job.batch_size, size, size, 3), np.uint8),
        "label": rng.integers(0, 1000, job.batch_size, np.int32),
    }
    step = make_train_step(network, optimizer, config, layout=layout)
    return step, layout.place(initial_state(arrays, optimizer)), layout.place_batch(batch)
