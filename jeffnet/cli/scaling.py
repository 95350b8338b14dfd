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
    """Measure, and print.

    Raises:
      UsageError: an option has several values or does not apply.
      ConfigError: an option does not fit the machines.
      JeffnetError: a process failed.
    """
    from jeffnet.bench.measure import count_devices
    from jeffnet.bench.scaling import ScalingJob, default_counts, measure_scaling

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
    for name in ("image_size", "dtype", "backend"):
        if len(getattr(options, name)) > 1:
            raise UsageError(f"--scaling takes one --{name.replace('_', '-')}")
    for name in ("compare", "baseline", "csv", "plot", "price_per_hour", "watts"):
        if getattr(options, name):
            raise UsageError(f"--scaling takes no --{name.replace('_', '-')}: remove it")
    models = _models(job)
    found = count_devices(settings)
    counts = tuple(sorted(set(options.devices))) or default_counts(*found)
    results = list(measure_scaling(job, counts, settings, found, say))
    if options.json:
        document = {
            "scaling": [
                {
                    "kind": kind,
                    **asdict(each.job),
                    "images_per_second": each.images_per_second,
                    "virtual": each.virtual,
                    "sent": {name: {"messages": count, "bytes": sent} for name, (count, sent) in each.sent.items()},
                }
                for kind, each in results
            ],
            "model": [
                {**asdict(each), "step": each.step, "limit": each.limit, "advice": each.advice} for each in models
            ],
        }
        print(json.dumps(document))
        return
    _print(results, models, found[0])


def _models(job: Any) -> list[Any]:
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


def _print(results: list[tuple[str, Any]], models: list[Any], platform: str) -> None:
    first = results[0][1]
    job = first.job
    print(f"training {job.model}, {job.dtype}, {job.backend}, on {platform}")
    if first.virtual:
        print("the devices are virtual ones on one CPU: messages are real, speeds are meaningless")
    rows, base = [], {}
    for kind, each in results:
        rate, devices = each.images_per_second, each.job.devices
        base.setdefault(kind, rate / devices)
        rows.append(
            (
                kind,
                str(devices),
                str(each.job.batch_size),
                f"{rate:.1f}",
                f"{100 * rate / devices / base[kind]:.0f} %",
                f"{sum(sent for _, sent in each.sent.values()) / 2**20:.1f}",
                ", ".join(f"{count} {name}" for name, (count, _) in sorted(each.sent.items())) or "none",
            )
        )
    print(table(("scaling", "devices", "batch", "images/s", "efficiency", "MiB sent", "messages"), rows))
    print()
    print(
        f"modelled step, {models[0].per_device} pictures per device, not measured; docs/scaling.md explains the model"
    )
    cells = [
        (
            each.machine.name,
            str(each.per_device * each.machine.devices),
            *(
                f"{1e3 * seconds:.1f}"
                for seconds in (each.compute, each.memory, each.gradients, each.norms, each.input)
            ),
            f"{1e3 * each.step:.1f}",
            each.limit,
        )
        for each in models
    ]
    head = ("machine", "batch", "compute ms", "memory ms", "gradients ms", "norms ms", "input ms", "step ms", "limit")
    print(table(head, cells))
    for each in models:
        print(f"{each.machine.name}: {each.advice}")
