"""Checksums of arrays: what they notice, and that those of parts add up."""

import numpy as np
import pytest

from jeffnet.weights.checksum import checksum, checksum_of_part


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "bool", "int8"])
@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (5, 7), (300, 2, 128)])
def test_the_definition(shape, dtype):
    array = (np.random.default_rng(0).normal(size=shape) * 100).astype(dtype)
    words = array.reshape(-1).view(f"u{array.itemsize}").tolist()
    expected = sum(word * (2 * place + 1) for place, word in enumerate(words)) % 2**64
    assert checksum(array) == expected
    assert checksum(np.asfortranarray(array)) == expected


def test_any_flipped_bit_changes_it():
    array = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    sums = {checksum(array)}
    for place in range(array.size):
        for bit in range(32):
            damaged = array.copy()
            damaged.reshape(-1).view(np.uint32)[place] ^= np.uint32(1 << bit)
            sums.add(checksum(damaged))
    assert len(sums) == 1 + 32 * array.size


def test_exchanged_elements_change_it():
    array = np.arange(12.0)
    assert checksum(array[::-1]) != checksum(array)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_parts_add_up(axis):
    array = np.random.default_rng(0).normal(size=(4, 6, 8)).astype(np.float32)
    total = 0
    for start, end in ((0, 1), (1, 3), (3, 4)):
        index = tuple(slice(start, end) if at == axis else slice(None) for at in range(3))
        total += checksum_of_part(array[index], index, array.shape)
    rest = tuple(slice(4, None) if at == axis else slice(None) for at in range(3))
    if array[rest].size:
        total += checksum_of_part(array[rest], rest, array.shape)
    assert total % 2**64 == checksum(array)
