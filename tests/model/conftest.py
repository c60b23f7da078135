"""The native kernels of every instruction set."""

from collections.abc import Iterator

import pytest

from distaff.model.kernels.native_library import instruction_sets, library


@pytest.fixture(params=instruction_sets() or [None], scope="module")
def instruction_set(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs a test once for each instruction set of this CPU."""
    loaded = library()
    if loaded is None:
        pytest.skip("the native kernels were not built: there is no C++ compiler")
    loaded.distaff_select(instruction_sets().index(request.param))
    yield
    loaded.distaff_select(0)
