"""The C++ kernels keep to their buffers and limits whatever they are called with, and say so instead of crashing."""

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jeffnet.ops import native
from jeffnet.ops.dense import depthwise_act
from jeffnet.ops.depthwise import Window
from jeffnet.ops.native import limits

pytestmark = [
    pytest.mark.skipif(not native.available(), reason=f"no C++ kernels: {native.failure()}"),
]

FUZZER = Path(__file__).with_name("kernel_fuzz.py")
_spec = importlib.util.spec_from_file_location("kernel_fuzz", FUZZER)
assert _spec is not None and _spec.loader is not None
kernel_fuzz = sys.modules["kernel_fuzz"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(kernel_fuzz)


# -------------------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize("name", kernel_fuzz.CHECKS)
def test_any_problem_equals_the_reference(name):
    kernel_fuzz.fuzz(name, {"call": 30, "resize": 300, "colours": 300}.get(name, 5))


@pytest.mark.parametrize(
    ("rows", "strides", "dilation"), [(33, (1, 1), (1, 1)), (3, (1, 2**17), (1, 1)), (3, (1, 1), (1, -1))]
)
def test_what_is_outside_the_limits_is_refused(rows, strides, dilation):
    window, kernel = Window(strides, ((0, 0), (0, 0)), dilation), jnp.ones((rows, 3, 1, 32))
    assert not limits.depthwise(kernel.shape, window)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INVALID_ARGUMENT: depthwise: outside the limits"):
        jax.block_until_ready(depthwise_act(jnp.ones((1, 40, 40, 32)), kernel, jnp.ones(32), window))


# --------------------------------------------------------------------------------------------------- memory and threads


def ends_well(*arguments, **environment):
    """Python with these arguments, in a process of its own, says at its end that all was right."""
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode or "no fault" not in answer.stdout:
        # Not by `assert`, whose message pytest would cut.
        raise AssertionError(f"status {answer.returncode}: {answer.stderr[-20000:]}")


PREPARED = """
    import os, resource, signal, threading, time
    import jax, jax.numpy as jnp, numpy as np
    from jeffnet.ops import native
    from jeffnet.ops.dense import dense_conv, depthwise_act
    from jeffnet.ops.depthwise import Window

    native.load()
    PLAIN = Window((1, 1), ((0, 0), (0, 0)), (1, 1))

    def prepared(function, *operands):
        operands = [jax.block_until_ready(jnp.asarray(each)) for each in operands]
        return jax.jit(function).lower(*operands).compile(), operands

    def convolution(batch, side):
        images = np.random.default_rng(0).normal(size=(batch, side, side, 64)).astype(np.float32)
        function = lambda *operands: depthwise_act(*operands, PLAIN, "relu")[0]
        return prepared(function, images, np.ones((3, 3, 1, 64), np.float32), np.ones(64, np.float32))
"""

LIMITED = """
    def limited(mebibytes, call, operands):
        # With so much more memory than now: the result, or the error. XLA's threads may still free theirs.
        time.sleep(0.5)
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + (mebibytes << 20), resource.RLIM_INFINITY))
        try:
            return np.asarray(call(*operands))
        except jax.errors.JaxRuntimeError as error:
            return str(error)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""

NO_THREADS = """
    # The stack of a thread takes 8 MiB: no helper can be started.
    call, operands = convolution(1, 28)
    alone = limited(4, call, operands)
    assert alone.shape == (1, 26, 26, 64), alone
    assert (alone == np.asarray(call(*operands))).all()
    print("no fault")
"""

NO_MEMORY = """
    # 48 MiB or more in each task.
    depth, lanes = 1 << 21, native.load().jeffnet_vector_floats()
    function = lambda images, gate, kernel, bias: dense_conv(images, kernel, bias, (1, 1), 1, PLAIN, None, gate)
    operands = [np.ones(shape, np.float32) for shape in ((1, 4, 4, depth), (1, 1, 1, depth), depth * lanes, lanes)]
    call, operands = prepared(function, *operands)
    assert limited(16, call, operands) == "RESOURCE_EXHAUSTED: out of memory"
    assert np.isfinite(np.asarray(call(*operands))).all()
    print("no fault")
"""

# In a process of its own, since memory that was freed may be kept and used again.
NO_MEMORY_FOR_SUMS = """
    # Sums as large as the result, of 64 MiB.
    shape = jax.ShapeDtypeStruct((4096, 4096), np.float32)
    call, operands = prepared(jax.ffi.ffi_call("jeffnet_outer_product", shape), *np.ones((2, 1, 4096), np.float32))
    assert limited(100, call, operands) == "RESOURCE_EXHAUSTED: out of memory"
    assert (np.asarray(call(*operands)) == 1).all()
    print("no fault")
"""

FORKED = """
    call, operands = convolution(8, 56)
    wanted = np.asarray(call(*operands))
    ended = threading.Event()

    def keep_busy():
        while not ended.is_set():
            call(*operands)

    threads = [threading.Thread(target=keep_busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(4):
        child = os.fork()
        if not child:
            signal.alarm(60)
            os._exit(not all((np.asarray(call(*operands)) == wanted).all() for _ in range(3)))
        assert os.waitpid(child, 0)[1] == 0
    ended.set()
    for thread in threads:
        thread.join()
    print("no fault")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("program", [NO_THREADS, NO_MEMORY, NO_MEMORY_FOR_SUMS], ids=["threads", "memory", "sums"])
def test_without_memory_or_threads_no_process_ends(program):
    """A thread that is missing is done without; memory that is missing is an error, and the next call works."""
    ends_well("-c", "".join(map(textwrap.dedent, (PREPARED, LIMITED, program))))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_process_waits_for_no_thread_of_its_parent():
    """While other threads are in the kernels."""
    ends_well("-c", "".join(map(textwrap.dedent, (PREPARED, FORKED))))


# ---------------------------------------------------------------------------------------------------------- sanitizers

PLANTED = """
#include "xla/ffi/api/ffi.h"
namespace ffi = xla::ffi;

ffi::Error Planted(ffi::Buffer<ffi::F32> x, ffi::Result<ffi::Buffer<ffi::F32>> out, int64_t past) {
  out->typed_data()[0] = x.typed_data()[x.element_count() - 1 + past];
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(planted, Planted,
                              ffi::Ffi::Bind().Arg<ffi::Buffer<ffi::F32>>().Ret<ffi::Buffer<ffi::F32>>().Attr<int64_t>("past"));
"""

CALL_PLANTED = """
    import ctypes, sys
    import jax, jax.numpy as jnp, numpy as np

    library = ctypes.CDLL(sys.argv[1])
    jax.ffi.register_ffi_target("planted", jax.ffi.pycapsule(library.planted), platform="cpu")
    call = jax.ffi.ffi_call("planted", jax.ShapeDtypeStruct((1,), np.float32))
    print(jax.jit(lambda x: call(x, past=np.int64(sys.argv[2])))(jnp.ones(33, np.float32)), "no fault")
"""


@pytest.fixture(scope="module")
def sanitizers():
    """The environment in which Python finds the sanitizers' libraries."""
    libraries = kernel_fuzz.sanitizer_libraries()
    if sys.platform != "linux" or not libraries:
        pytest.skip("the compiler has no shared libraries of its sanitizers")
    # Python leaves memory at its end.
    return {"LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0"}


@pytest.mark.slow
def test_the_sanitizer_sees_a_read_past_a_buffer(sanitizers, tmp_path):
    """Otherwise the next test would show nothing."""
    (tmp_path / "planted.cc").write_text(PLANTED)
    files = [str(tmp_path / "planted.cc"), "-o", str(tmp_path / "planted.so")]
    flags = [*kernel_fuzz.sanitized_flags(), "-shared", f"-I{jax.ffi.include_dir()}"]
    subprocess.run([native.compiler(), *flags, *files], check=True)
    program = textwrap.dedent(CALL_PLANTED)
    ends_well("-c", program, tmp_path / "planted.so", 0, **sanitizers)
    with pytest.raises(AssertionError, match="heap-buffer-overflow"):
        ends_well("-c", program, tmp_path / "planted.so", 1, **sanitizers)


@pytest.mark.slow
def test_no_sanitizer_finds_a_fault(sanitizers):
    """The compiler itself runs without them: it would take five times as long."""
    subprocess.run([sys.executable, FUZZER, "--build"], check=True)
    ends_well(FUZZER, "--sanitized", "--examples", 100, **sanitizers)


@pytest.mark.slow
@pytest.mark.parametrize("name", kernel_fuzz.CHECKS)
def test_many_problems_equal_the_reference(name):
    kernel_fuzz.fuzz(name, 3000 if name == "resize" else 300, start=1)
