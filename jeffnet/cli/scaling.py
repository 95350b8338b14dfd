"""`jeffnet bench --scaling`: scaling of training, measured on this host and modelled for larger machines."""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from jeffnet.cli.model import positive
from jeffnet.cli.text import table
from jeffnet.errors import UsageError


def add_scaling_options(group: Any) -> None:
    """Add the options."""
    group.add_argument(
        "--scaling",
        action="store_true",
        help="measure training on several devices: weak and strong scaling, the data that a step sends, and a model of "
        "its time on 8 GPUs and on pods; the largest --batch-size is that of a device",
    )
    group.add_argument(
        "--devices", nargs="+", type=positive, default=(), metavar="N", help="(default: 1, 2, 4 ... all; 8 on a CPU)"
    )
    group.add_argument("--bn-devices", type=positive, metavar="N", help="devices that share BatchNorm's statistics")
    group.add_argument("--fsdp", type=positive, default=1, metavar="N", help="devices that share one training state")


def run_scaling(options: argparse.Namespace, model: str, settings: Any, say: Callable[[str], None]) -> None:
    """Measure, and print."""
    from jeffnet.bench.measure import count_devices
    from jeffnet.bench.scaling import ScalingJob, default_counts, measure_scaling

    for name in ("image_size", "dtype", "backend"):
        if len(getattr(options, name)) > 1:
            raise UsageError(f"--scaling takes one --{name.replace('_', '-')}")
    for name in ("compare", "baseline", "csv", "plot", "price_per_hour", "watts"):
        if getattr(options, name):
            raise UsageError(f"--scaling takes no --{name.replace('_', '-')}: remove it")
    job = ScalingJob(
        model=model,
        devices=1,
        batch_size=max(options.batch_size),
        image_size=options.image_size[0] if options.image_size else None,
        dtype=options.dtype[0],
        backend=options.backend[0],
        bn_devices=options.bn_devices,
        fsdp=options.fsdp,
        seconds=options.seconds,
    )
    steps = _modelled_steps(job)
    platform, count = count_devices(settings)
    counts = tuple(sorted(set(options.devices))) or default_counts(platform, count)
    results = list(measure_scaling(job, counts, settings, (platform, count), say))
    if options.json:
        print(json.dumps(_document(results, steps)))
    else:
        _print(results, steps, platform)


def _modelled_steps(job: Any) -> list[Any]:
    """The modelled step on every known machine."""
    from jeffnet.arch.zoo import model_plan, model_preprocessing
    from jeffnet.bench.step_model import MACHINES, model_step

    plan, size = model_plan(job.model), job.image_size or model_preprocessing(job.model).image_size
    return [
        model_step(
            plan,
            size,
            machine,
            bn_devices=job.bn_devices and min(job.bn_devices, machine.devices),
            fsdp=min(job.fsdp, machine.devices),
        )
        for machine in MACHINES.values()
    ]


def _document(results: list[tuple[str, Any]], steps: list[Any]) -> dict[str, Any]:
    return {
        "scaling": [
            {
                "kind": kind,
                **asdict(result.job),
                "images_per_second": result.images_per_second,
                "virtual": result.virtual,
                "sent": {name: {"messages": count, "bytes": sent} for name, (count, sent) in result.sent.items()},
            }
            for kind, result in results
        ],
        "model": [{**asdict(step), "step": step.step, "limit": step.limit, "advice": step.advice} for step in steps],
    }


def _print(results: list[tuple[str, Any]], steps: list[Any], platform: str) -> None:
    first = results[0][1]
    print(f"training {first.job.model}, {first.job.dtype}, {first.job.backend}, on {platform}")
    if first.virtual:
        print("the devices are virtual ones on one CPU: messages are real, speeds are meaningless")
    cells, base = [], {}
    for kind, result in results:
        rate, devices = result.images_per_second, result.job.devices
        base.setdefault(kind, rate / devices)
        efficiency, sent = rate / devices / base[kind], sum(count for _, count in result.sent.values())
        messages = ", ".join(f"{count} {name}" for name, (count, _) in sorted(result.sent.items())) or "none"
        shown = f"{rate:.1f}", f"{100 * efficiency:.0f} %", f"{sent / 2**20:.1f}", messages
        cells.append((kind, str(devices), str(result.job.batch_size), *shown))
    print(table(("scaling", "devices", "batch", "images/s", "efficiency", "MiB sent", "messages"), cells))
    print()
    print(f"modelled step, {steps[0].per_device} pictures per device, not measured; docs/scaling.md explains the model")
    cells = []
    for step in steps:
        seconds = (step.compute, step.memory, step.gradients, step.norms, step.input, step.step)
        batch = str(step.per_device * step.machine.devices)
        cells.append((step.machine.name, batch, *(f"{1e3 * part:.1f}" for part in seconds), step.limit))
    head = ("machine", "batch", "compute ms", "memory ms", "gradients ms", "norms ms", "input ms", "step ms", "limit")
    print(table(head, cells))
    for step in steps:
        print(f"{step.machine.name}: {step.advice}")
