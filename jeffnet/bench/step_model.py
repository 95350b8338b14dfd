"""Estimates the seconds of a training step on machines we have not measured, from data sheets and assumptions."""

from dataclasses import dataclass

from jeffnet.arch.plan import Plan
from jeffnet.arch.summary import array_specs, count_macs, count_parameters, layers
from jeffnet.errors import ConfigError

# Pictures a second that one processor core decodes for training: docs/measurements.md.
DECODE_PER_CORE = 500.0
# Bytes of an ImageNet picture as it is stored, on average.
PICTURE_BYTES = 110e3
# Assumed share of the peak that convolutions reach.
EFFICIENCY = 0.5
# Assumed times that a layer's output is written or read, forward (four) and backward (four).
PASSES = 8
# All-reduces of a norm: two forward, two backward.
_PER_NORM = 4


@dataclass(frozen=True)
class Machine:
    """Devices and their connections; rates are per second.

    Attributes:
      devices: all of them.
      flops: peak of a device in bfloat16.
      memory_bytes: of a device.
      memory_bandwidth: bytes of a device.
      link_bandwidth: bytes that a device sends in an all-reduce.
      latency: seconds of a small all-reduce of all devices; assumed.
      host_bandwidth: bytes of a host's network, for data and between slices.
      devices_per_host: how many a host has.
      cores: of a host's processors.
      source: where the numbers are from.
      slices: groups of devices that only the hosts' network connects.
      slice_latency: seconds of a small all-reduce in one slice; assumed.
    """

    name: str
    devices: int
    flops: float
    memory_bytes: float
    memory_bandwidth: float
    link_bandwidth: float
    latency: float
    host_bandwidth: float
    devices_per_host: int
    cores: int
    source: str
    slices: int = 1
    slice_latency: float = 30e-6


_TPU = "docs.cloud.google.com/tpu/docs/v5e: 224 virtual processors a host, counted as 112; latency assumed"
MACHINES = {
    "8 x H100": Machine(
        "8 x H100", 8, 989e12, 80e9, 3.35e12, 450e9, 15e-6, 50e9, 8, 112,
        "NVIDIA H100 data sheet; latency and network assumed", slice_latency=15e-6,
    ),
    "v5e-256": Machine("v5e-256", 256, 197e12, 16e9, 819e9, 200e9, 30e-6, 25e9, 8, 112, _TPU),
    "1024 x v5e": Machine("1024 x v5e", 1024, 197e12, 16e9, 819e9, 200e9, 200e-6, 25e9, 8, 112, _TPU, slices=4),
}  # fmt: skip

_ADVICE = {
    "compute": "the devices are busy: nothing to set",
    "memory": "train in bfloat16; a larger batch does not help",
    "all-reduce": "a larger batch_size for each device, with LARS or LAMB; accumulate does not help",
    "BatchNorm": "model.bn_devices: 1, or groups of neighbours",
    "input pipeline": "more data.workers and data.threads, smaller stored pictures, or more processors for each device",
}


@dataclass(frozen=True)
class StepModel:
    """Seconds of the parts of a training step.

    Attributes:
      per_device: pictures of a device.
      compute: of matrix products.
      memory: of reading and writing activations.
      gradients: of summing gradients, and of gathering split parameters.
      norms: of BatchNorm's all-reduces.
      input: of reading and decoding the batch, beside the step.
    """

    machine: Machine
    per_device: int
    compute: float
    memory: float
    gradients: float
    norms: float
    input: float

    @property
    def step(self) -> float:
        """Seconds of a step, without overlap of communication and computation."""
        return max(max(self.compute, self.memory) + self.gradients + self.norms, self.input)

    @property
    def limit(self) -> str:
        """The bottleneck: compute, memory, all-reduce, BatchNorm or input pipeline."""
        if self.input >= self.step:
            return "input pipeline"
        names = ("compute", "memory", "all-reduce", "BatchNorm")
        return max(zip((self.compute, self.memory, self.gradients, self.norms), names, strict=True))[1]

    @property
    def advice(self) -> str:
        """Advice on settings, in one line."""
        return _ADVICE[self.limit]


def model_step(
    plan: Plan,
    image_size: int,
    machine: Machine,
    *,
    per_device: int = 128,
    bn_devices: int | None = None,
    fsdp: int = 1,
) -> StepModel:
    """The parts of a step of training in bfloat16, with `per_device` pictures on each device.

    `fsdp` devices share one state, and `bn_devices` the statistics of BatchNorm.

    Raises:
      ConfigError: a number is not positive, or groups do not divide the devices.
    """
    group = machine.devices if bn_devices is None else bn_devices
    for name, number in (("bn_devices", group), ("fsdp", fsdp)):
        if number < 1 or machine.devices % number:
            raise ConfigError(f"{name} {number} does not divide {machine.devices} devices: choose a divisor")
    if per_device < 1:
        raise ConfigError(f"per_device {per_device} must be positive: choose a larger one")
    compute = 3 * 2 * count_macs(plan, image_size) * per_device / (machine.flops * EFFICIENCY)
    elements = sum(row.out_channels * row.out_size**2 for row in layers(plan, image_size))
    memory = elements * 2 * PASSES * per_device / machine.memory_bandwidth
    latency = machine.latency if group > machine.devices // machine.slices else machine.slice_latency
    norms = sum(spec.leaf == "mean" for spec in array_specs(plan).values()) * _PER_NORM * latency if group > 1 else 0.0
    pictures = per_device * machine.devices_per_host
    read = max(pictures / (machine.cores * DECODE_PER_CORE), pictures * PICTURE_BYTES / machine.host_bandwidth)
    gradients = _gradients(4.0 * count_parameters(plan), machine, fsdp)  # in float32
    return StepModel(machine, per_device, compute, memory, gradients, norms, read)


def _gradients(size: float, machine: Machine, fsdp: int) -> float:
    """Seconds: inside a slice by its links, between slices each host its share, and parameters gathered twice."""
    inside = machine.devices // machine.slices
    seconds = 2 * (inside - 1) / inside * size / machine.link_bandwidth + machine.latency
    between = 2 * (machine.slices - 1) / machine.slices * size
    seconds += between / (machine.host_bandwidth * inside / machine.devices_per_host)
    return seconds + 2 * (fsdp - 1) / fsdp * size / machine.link_bandwidth
