"""Manifests: written last, read only when they are what was asked for, and never leaving their folder."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retilt import artifact, storage
from retilt.types import InputError


@pytest.fixture
def folder(tmp_path):
    """An artifact with two files."""
    storage.write_bytes(str(tmp_path / "a.bin"), b"a" * 100)
    storage.write_bytes(str(tmp_path / "b" / "c.bin"), b"c" * 100)
    files = [artifact.file_entry(str(tmp_path), path) for path in ("b/c.bin", "a.bin")]
    artifact.write_manifest(str(tmp_path), "thing", 2, {"answer": 42}, files)
    return tmp_path


def test_a_manifest_round_trip(folder):
    manifest = artifact.read_manifest(str(folder), "thing", [1, 2])
    assert manifest["answer"] == 42
    assert [file["path"] for file in manifest["files"]] == ["a.bin", "b/c.bin"]
    artifact.verify(str(folder), manifest)


@pytest.mark.parametrize(
    ("kind", "formats", "said"),
    [("policy", [2], "expected a policy, found 'thing'"), ("thing", [1, 3], "format 2 is not one .*1, 3")],
)
def test_another_kind_or_format_is_refused(folder, kind, formats, said):
    with pytest.raises(InputError, match=said):
        artifact.read_manifest(str(folder), kind, formats)


def test_no_artifact(tmp_path):
    with pytest.raises(InputError, match=r"no thing here \(manifest.json is missing\)"):
        artifact.read_manifest(str(tmp_path), "thing", [1])
    with pytest.raises(InputError, match="no thing here"):
        artifact.read_manifest(str(tmp_path / "none"), "thing", [1])
    storage.write_bytes(str(tmp_path / "manifest.json"), b'{"kind": "thi')
    with pytest.raises(InputError, match="not valid JSON"):
        artifact.read_manifest(str(tmp_path), "thing", [1])


@pytest.mark.parametrize("damage", ["flip", "cut", "absent", "unlisted"])
def test_a_damaged_file_is_named(folder, damage):
    place = folder / "b" / "c.bin"
    manifest = artifact.read_manifest(str(folder), "thing", [2])
    said = {"flip": "sha256 differs", "cut": "99 bytes, but", "absent": "absent", "unlisted": "not listed"}[damage]
    if damage == "flip":
        place.write_bytes(b"c" * 50 + b"d" + b"c" * 49)
    elif damage == "cut":
        place.write_bytes(b"c" * 99)
    elif damage == "absent":
        place.unlink()
    with pytest.raises(InputError, match=rf"c\.bin.*{said}"):
        artifact.verify(str(folder), manifest, ["b/c.bin"] if damage != "unlisted" else ["x/c.bin"])
    if damage in ("cut", "absent"):
        with pytest.raises(InputError, match=rf"c\.bin.*{said}"):
            artifact.require_files(str(folder), manifest)


ENTRY = {"path": "a", "bytes": 1, "sha256": "0" * 64}


@pytest.mark.parametrize(
    "files",
    [
        *(
            [{**ENTRY, "path": path}]
            for path in ("/a", "../a", "a/../b", "a\\b", "a\0b", "s3://b/a", "a//b", "", "./a", "C:a")
        ),
        [ENTRY, ENTRY],
        [ENTRY, {**ENTRY, "path": "A"}],
        [{**ENTRY, "bytes": -1}],
        [{**ENTRY, "bytes": True}],
        [{**ENTRY, "sha256": "x"}],
        [{"path": 3}],
        ["a"],
        None,
    ],
)
def test_paths_that_escape_and_entries_that_lack_something_are_refused(tmp_path, files):
    storage.write_json(str(tmp_path / "manifest.json"), {"kind": "thing", "format": 1, "files": files})
    with pytest.raises(InputError, match=r"manifest\.json"):
        artifact.read_manifest(str(tmp_path), "thing", [1])


@given(st.text())
def test_an_accepted_path_stays_in_its_folder(path):
    try:
        artifact._check_files("m", [{**ENTRY, "path": path}])
    except InputError:
        return
    assert not path.startswith("/")
    assert not set(path.split("/")) & {"", ".", ".."}


def test_a_fingerprint_depends_on_the_value_only():
    assert artifact.fingerprint({"a": 1, "b": [1.5, "é"]}) == artifact.fingerprint({"b": [1.5, "é"], "a": 1})
    assert artifact.fingerprint({"a": 1}) != artifact.fingerprint({"a": 2})


def test_tensors_round_trip_without_pickle(tmp_path):
    tensors = {"w": torch.arange(6.0).reshape(2, 3).t(), "n": torch.tensor(3)}
    entry = artifact.save_tensors(str(tmp_path), "t.safetensors", tensors)
    assert entry == artifact.file_entry(str(tmp_path), "t.safetensors")
    found = artifact.load_tensors(str(tmp_path / "t.safetensors"))
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    data = (tmp_path / "t.safetensors").read_bytes()
    for wrong in (data[:-4], b"", pickle.dumps({"w": 1})):
        (tmp_path / "t.safetensors").write_bytes(wrong)
        with pytest.raises(InputError, match=r"t\.safetensors: not a whole safetensors file"):
            artifact.load_tensors(str(tmp_path / "t.safetensors"))
