"""What the doctor finds, and the mend that it names."""

from __future__ import annotations

import importlib

import pytest

from retilt import storage
from retilt.cluster import doctor

SHIM = {"fbgemm-gpu": "1.8.0+cpu.shim", "fbgemm-gpu-cpu": "1.8.0"}


@pytest.mark.parametrize(
    ("version", "mark"), [((3, 10, 9), "✗"), ((3, 11, 0), "✓"), ((3, 13, 9), "✓"), ((3, 14, 0), "✗")]
)
def test_python(version, mark):
    assert doctor.python(version, "linux").mark == mark
    assert doctor.python(version, "darwin").mark == "✗"


@pytest.mark.parametrize(
    ("versions", "torch_has_cuda", "gpu", "mark", "mend"),
    [
        (SHIM, False, False, "✓", ""),
        (SHIM, True, False, "✓", ""),
        (SHIM, True, True, "!", doctor.MEND_CUDA),
        ({"fbgemm-gpu": "1.8.0"}, True, True, "✓", ""),
        ({"fbgemm-gpu": "1.8.0"}, False, False, "✗", doctor.MEND_CPU),
        ({"fbgemm-gpu": "1.8.0", "fbgemm-gpu-cpu": "1.8.0"}, False, False, "✗", doctor.MEND_CPU),
        ({"fbgemm-gpu": "1.8.0", "fbgemm-gpu-cpu": "1.8.0"}, True, True, "✗", doctor.MEND_CUDA),
        ({}, False, False, "✗", doctor.MEND_CPU),
    ],
)
def test_the_build_of_fbgemm_must_fit_torch(versions, torch_has_cuda, gpu, mark, mend):
    found = doctor.fbgemm_flavour(versions, torch_has_cuda, gpu)
    assert (found.mark, found.mend) == (mark, mend)


@pytest.mark.parametrize(
    ("environment", "token", "mark"),
    [
        ({}, False, "!"),
        ({"RAY_AUTH_MODE": "token"}, True, "✓"),
        ({"RAY_AUTH_MODE": "token"}, False, "!"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t"}, False, "✓"),
        ({"RAY_AUTH_MODE": "disabled"}, True, "✗"),
    ],
)
def test_ray_token(environment, token, mark, tmp_path):
    if token:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("secret-canary")
    found = doctor.ray_token(environment, tmp_path)
    assert found.mark == mark
    assert "canary" not in doctor.report([found])


def test_a_store_that_works_is_left_clean(tmp_path):
    assert doctor.store(str(tmp_path)).mark == "✓"
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_refuses_and_one_that_forgets(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert doctor.store(str(tmp_path / "file" / "below")).mark == "✗"
    monkeypatch.setattr(storage, "read_bytes", lambda uri: b"other")
    assert doctor.store(str(tmp_path)).mark == "✗"


def test_data_mirror(tmp_path):
    assert doctor.data_mirror(None).mark == "✓"
    assert doctor.data_mirror(str(tmp_path)).mark == "✓"
    assert doctor.data_mirror(str(tmp_path / "nowhere")).mark == "✗"


def test_a_broken_installation_is_a_finding(monkeypatch, capsys):
    def broken() -> doctor.Check:
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(doctor, "fbgemm_op", broken)
    assert doctor.run() == 2
    out = capsys.readouterr().out
    assert "✗ fbgemm op" in out
    assert "libcudart.so.13" in out
    assert f"→ {doctor.REINSTALL}" in out


def test_ray_is_found_after_its_dashboard_was_imported():
    """colorful replaces itself in sys.modules by an object without a spec."""
    importlib.import_module("colorful")
    assert doctor.ray().mark == "✓"


def test_this_environment_is_sound(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.delenv("RETILT_DATA_MIRROR", raising=False)
    found = {each.name: each.mark for each in doctor.diagnose(str(tmp_path))}
    assert [name for name, mark in found.items() if mark == "✗"] == []
    assert len(found) == 10
