"""Eight devices, which CPUs pretend to be and accelerators may not have."""

import os

import jax
import pytest


def found() -> list[jax.Device]:
  """All of them; a test on an accelerator with fewer is skipped."""
  here = jax.devices()
  if len(here) < 8 and os.environ.get("JAXKD_TEST_PLATFORMS", "cpu") != "cpu":
    pytest.skip(f"needs eight devices, {len(here)} are here")
  assert len(here) == 8
  return here
