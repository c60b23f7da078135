"""The native kernels of every instruction set, and what each module of tests leaves behind."""

from collections.abc import Callable, Iterator

import jax
import pytest

from distaff.model.kernels.native_library import instruction_sets, library


@pytest.fixture(autouse=True, scope="module")
def free_compiled_programs() -> Iterator[None]:
    """No module needs another's programs, which take gigabytes together."""
    yield
    jax.clear_caches()


def select(name: str | None) -> None:
    """Lets the native kernels use this instruction set."""
    loaded = library()
    if loaded is None:
        pytest.skip("the native kernels were not built: there is no C++ compiler")
    loaded.distaff_select(instruction_sets().index(name))


@pytest.fixture(params=instruction_sets() or [None])
def instruction_set(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs a test once for each instruction set of this CPU."""
    select(request.param)
    yield
    select(instruction_sets()[0])


@pytest.fixture(scope="session")
def on_each_instruction_set() -> Callable[[Callable[[], None]], None]:
    """Calls a function once for each instruction set of this CPU.

    For tests whose shapes are drawn: what the function calls is compiled once for all sets.
    """

    def run(check: Callable[[], None]) -> None:
        for name in instruction_sets() or [None]:
            select(name)
            try:
                check()
            except AssertionError as error:
                error.add_note(f"instruction set: {name}")
                raise
            finally:
                select(instruction_sets()[0])

    return run
