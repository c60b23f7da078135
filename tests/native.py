"""Tests of the native kernels, which an installation without a C++ compiler does not have."""

import pytest

from distaff.model.kernels.native_library import instruction_sets

NATIVE = pytest.mark.skipif(not instruction_sets(), reason="the native kernels were not built")
"""Skips a test there; the portable kernels have their own tests, which always run."""
