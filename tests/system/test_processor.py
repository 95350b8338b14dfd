"""The facts about the processor, from what the system says of it, and where it says nothing."""

import platform

import pytest

from jeffnet.system import processor

X86 = """processor\t: 0
model name\t: Some Processor
cpu MHz\t\t: 2400.1
flags\t\t: fpu avx2 {more}

processor\t: 1
model name\t: Some Processor
cpu MHz\t\t: 3100.9
flags\t\t: fpu avx2 {more}
"""
ARM = """processor\t: 0
BogoMIPS\t: 50.00
Features\t: fp asimd
CPU part\t: {part}
"""


@pytest.fixture
def says(tmp_path, monkeypatch):
    """Sets what the system says: the text of /proc/cpuinfo, and sizes of caches."""
    facts = (processor.fingerprint, processor.short_fingerprint, processor.vector_bits, processor.cache_bytes)

    def forget():
        for each in facts:
            each.cache_clear()

    def change(text=None, sizes=()):
        for number, size in enumerate(sizes):
            (tmp_path / f"index{number}").mkdir()
            (tmp_path / f"index{number}" / "size").write_text(size)
        places = {"/proc/cpuinfo": tmp_path / "cpuinfo", "/sys/devices/system/cpu/cpu0/cache": tmp_path}
        monkeypatch.setattr(processor, "Path", lambda path: places[path])
        if text is not None:
            (tmp_path / "cpuinfo").write_text(text)
        forget()

    yield change
    forget()


def test_the_fingerprint_is_of_what_code_depends_on(says):
    """Not of the frequency of the moment, nor of how many processors there are."""
    says(X86.format(more="sse4"))
    one = processor.fingerprint()
    says(X86.format(more="sse4").replace("3100.9", "800.0") + "\n" + X86.format(more="sse4"))
    assert processor.fingerprint() == one
    says(X86.format(more="avx512f"))
    assert processor.fingerprint() != one
    says(X86.format(more="sse4").replace("Some", "Another"))
    assert processor.fingerprint() != one
    says(ARM.format(part="0xd40"))
    arm = processor.fingerprint()
    says(ARM.format(part="0xd4f"))
    assert one != arm != processor.fingerprint()
    assert all(fact in arm for fact in (platform.system(), platform.machine(), "asimd"))


def test_a_short_fingerprint_is_one_line_that_differs_as_the_long_one(says):
    short = []
    for more in ("sse4", "avx512f", "sse4"):
        says(X86.format(more=more))
        short.append(processor.short_fingerprint())
    assert short[0] == short[2] != short[1]
    assert platform.machine() in short[0] and len(short[0]) < 50 and "\n" not in short[0]


def test_features_are_those_of_all_cores(says):
    says(X86.format(more="sse4") + "\n" + X86.format(more="sse4 avx512f"))
    assert processor.features() == {"fpu", "avx2", "sse4"}
    says(ARM.format(part="0xd40"))
    assert processor.features() == {"fp", "asimd"}


def test_a_system_without_cpuinfo(says):
    says()
    assert processor.features() == frozenset()
    assert platform.machine() in processor.fingerprint()
    assert processor.vector_bits() == 256


@pytest.mark.parametrize(("more", "bits"), [("avx512f avx512vl", 512), ("sse4", 256), ("avx512fp16x", 256)])
def test_vector_width(more, bits, says):
    says(X86.format(more=more))
    assert processor.vector_bits() == bits


@pytest.mark.parametrize(
    ("sizes", "largest"),
    [
        (("48K", "32K\n", "2048K", "260M"), 260 << 20),
        (("512K",), 512 << 10),
        (("1G", "3K"), 1 << 30),
        (("", "unknown", "12", "64K"), 64 << 10),
        (("",), 8 << 20),
        ((), 8 << 20),
    ],
    ids=str,
)
def test_largest_cache(sizes, largest, says):
    says("", sizes)
    assert processor.cache_bytes() == largest


@pytest.mark.parametrize(("machine", "more"), [("x86_64", "avx_vnni"), ("AMD64", "avx512_vnni"), ("aarch64", "")])
def test_vnni(machine, more, says, monkeypatch):
    """Only x86 processors need it; one that says nothing may lack it."""
    says(X86.format(more=more))
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert not processor.lacks_vnni()
    says(X86.format(more="avx512f"))
    assert processor.lacks_vnni() == (machine != "aarch64")


def test_this_machine_says_something():
    assert len(processor.fingerprint()) > 10
    assert processor.vector_bits() in (256, 512) and processor.cache_bytes() >= 1 << 15
