"""Contenders for tests, which need no framework; their processes find them by the tests' own path."""

import os
import signal
import sys
import time

import numpy as np

from jeffnet.bench.program import Program, UnsupportedError, reference_file


class Right(Program):
    """Gives the reference's answer; says of each call to whom it belonged."""

    factor, calls = 1.0, 0

    def load(self):
        self.environment = {name: os.environ.get(name, "") for name in ("OMP_NUM_THREADS", "JEFFNET_CONV")}
        self.environment["processors"] = str(sorted(os.sched_getaffinity(0)))

    def create(self):
        job = self.job
        self.reference = np.load(reference_file(job.folder, job.task, job.image_size, job.batch_size))

    def call(self):
        self.calls += 1
        with open(os.environ["TURNS"], "a") as file:
            file.write(f"{type(self).__name__}\n")
        time.sleep(0.002)
        return self.reference * self.factor

    def answer(self, result):
        return result

    def describe(self):
        return {"platform": "cpu", "device": "cpu", "versions": self.environment}


class Wrong(Right):
    factor = 1.5


class NotANumber(Right):
    factor = float("nan")


class Loud(Right):
    def call(self):
        print("{no JSON at all")
        os.system("echo nor this")
        return super().call()


class Missing(Right):
    def create(self):
        raise UnsupportedError("no such model")


class Fails(Right):
    def create(self):
        raise ValueError("first line\nsecond line")


class Dies(Right):
    def create(self):
        print("what it said last", file=sys.stderr)
        os._exit(3)


class Killed(Right):
    """In its second turn: the first two calls are no turn, and each turn of no seconds is two calls."""

    def call(self):
        if self.calls == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().call()


class Sleeps(Right):
    def create(self):
        time.sleep(600)


class Drifts(Right):
    """Right before the first step alone."""

    def answer(self, result):
        return result * (1.1 if self.calls > 1 else 1.0)


def waits(arguments, channel):
    """Says so through a pipe, and computes for ever."""
    with open(arguments["pipe"], "w") as pipe:
        print("waits", file=pipe, flush=True)
        channel.send({})
        time.sleep(600)
