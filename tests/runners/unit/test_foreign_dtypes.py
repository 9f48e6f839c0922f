"""Arrays of types that numpy gets from other libraries."""

from __future__ import annotations

import ml_dtypes
import msgspec
import numpy as np
import pytest

from runners.protocol.values import UnsendableError, pack, unpack


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e5m2])
@pytest.mark.parametrize("size", [3, 10**7])
def test_they_are_refused_by_name(dtype, size):
    with pytest.raises(UnsendableError, match=f"an array of {np.dtype(dtype).name} cannot be sent"):
        pack([np.zeros(size, dtype)])


def test_plain_void_arrays_still_cross():
    array = np.array([b"ab"], dtype="V2")
    assert unpack(*pack(array)).tobytes() == array.tobytes()


def test_extensions_of_the_caller_cross():
    value = [msgspec.msgpack.Ext(42, b"own")]
    assert unpack(*pack(value)) == value
