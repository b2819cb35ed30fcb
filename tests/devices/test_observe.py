"""Figures of speed, and which updates are traced."""

import time

import jax
import numpy as np
import pytest

from jaxkd import config
from jaxkd.devices import mesh, observe
from jaxkd.errors import UserError


def test_meter_counts_waiting_padding_and_audio_since_the_last_reading():
  def slow():
    for number in range(3):
      time.sleep(0.02)
      yield number

  meter = observe.Meter()
  assert list(meter.waiting_for(slow())) == [0, 1, 2]
  meter.add(30.0, 40.0)
  row = meter.read()
  assert row["padding"] == 0.25 and 0.5 < row["input_wait"] <= 1
  assert 0 < row["audio_per_second"] <= 30 / 0.06
  assert meter.read()["audio_per_second"] == 0


def test_share_of_the_peak_where_it_is_known(monkeypatch):
  kind = jax.local_devices()[0].device_kind
  monkeypatch.setitem(observe.PEAK_FLOPS, kind, 1e12)
  meter = observe.Meter()
  time.sleep(0.01)
  meter.add(1.0, 1.0, 8e9)
  row = meter.read()
  assert 0 < row["utilisation"] < 0.1
  np.testing.assert_allclose(row["utilisation"], row["teraflops"] / 8, atol=2e-4)


@pytest.mark.parametrize("first", [0, 3])
def test_trace_covers_the_updates_asked_for(tmp_path, first):
  """Also where the run was resumed in the middle of them."""
  profile = observe.Profile(tmp_path, (2, 3))
  seen = {}
  for step in range(first, 5):
    profile.before(step)
    seen[step] = profile._on
    profile.after(step, ())
  assert [step for step, on in seen.items() if on] == [2, 3][first // 2 :]
  assert list(tmp_path.rglob("*.xplane.pb")) and list(tmp_path.rglob("perfetto_trace.json.gz"))


@pytest.mark.parametrize("given", ["5", "20:10", "a:b", ":", "1:2:3"])
def test_wrong_profiles_are_one_line(given):
  with pytest.raises(UserError, match=f"--profile={given}: it must be FIRST:LAST"):
    config.profile_steps(given)


def test_profiles():
  assert config.profile_steps("10:20") == (10, 20) and config.profile_steps("") is None


def test_devices_that_are_not_there_are_one_line(monkeypatch):
  for error in (AssertionError(), RuntimeError("Unable to initialize\nbackend 'nope'")):
    monkeypatch.setattr(jax, "devices", lambda error=error: raise_(error))
    with pytest.raises(UserError, match="JAX finds no device .*JAX_PLATFORMS=cpu") as caught:
      mesh.describe_devices()
    assert "\n" not in str(caught.value)


def raise_(error: Exception):
  raise error


@pytest.mark.parametrize(("names", "ok"), [(["a", "a"], True), (["a", "b"], False)])
def test_a_folder_on_one_of_several_hosts_is_one_line(monkeypatch, names, ok):
  monkeypatch.setattr(mesh, "gather", lambda _: names)
  if ok:
    mesh.check_one_host("s3://bucket/run")
    return
  with pytest.raises(UserError, match="^s3://bucket/run: processes on several hosts need"):
    mesh.check_one_host("s3://bucket/run")
