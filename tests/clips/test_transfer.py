"""Arrays on their way to a device; what a GPU does with them is not run here."""

from __future__ import annotations

import numpy as np
import pytest

from tpn_ray.clips.transfer import upload


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
def test_a_tensor_of_its_own(dtype: type[np.generic]) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    array.flags.writeable = False  # as blocks of the object store are
    tensor = upload(array, "cpu")
    assert tensor.numpy().dtype == dtype
    assert np.array_equal(tensor.numpy(), array)
    tensor += 1
    assert array[0, 0, 0] == 0
