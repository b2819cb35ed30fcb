"""A folder with stand-ins for launchers."""

import pytest

from stand_ins import House


@pytest.fixture
def house(tmp_path) -> House:
  return House(tmp_path)
