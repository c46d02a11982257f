"""Checks the environment and says how to mend what is wrong."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retilt import storage
from retilt.types import InputError, RetiltError

TORCH, TORCHREC, RAY = "2.13.", "1.8.", "2.60."
SHIM = "cpu.shim"
REINSTALL = "remove .venv and run `make setup`"
MEND_CPU = (
    "python -m pip uninstall -y fbgemm-gpu fbgemm-gpu-cpu && "
    "python -m pip install ./deploy/packaging/fbgemm-gpu-cpu-shim -e '.[cpu]'"
)
MEND_CUDA = "python -m pip uninstall -y fbgemm-gpu fbgemm-gpu-cpu && python -m pip install -e '.[cuda]'"
LEAST_MEMORY = 4 * 2**30
RAY_DEFAULT = ("aiohttp_cors", "colorful", "opencensus", "prometheus_client")
"""Distributions that only ``ray[default]`` brings; without them there is no Job API."""


@dataclass(frozen=True)
class Check:
    """One line of the report; ``mend`` is empty where nothing needs to be done."""

    name: str
    found: str
    mend: str = ""
    fatal: bool = True
    """Whether an unmended finding ends in exit code 2."""

    @property
    def mark(self) -> str:
        """``✓`` fine, ``✗`` must be mended, ``!`` good to know."""
        return "✓" if not self.mend else "✗" if self.fatal else "!"


def run(uri: str | None = None) -> int:
    """Print every check. Returns 0, or 2 where something must be mended."""
    checks = diagnose(uri)
    print(report(checks))
    return 2 if any(each.mark == "✗" for each in checks) else 0


def diagnose(uri: str | None = None) -> list[Check]:
    """All checks, in the order in which mending makes sense."""
    facts: list[tuple[str, Callable[[], Check]]] = [
        ("python", lambda: python(sys.version_info[:3], sys.platform)),
        ("torch", torch),
        ("fbgemm", fbgemm),
        ("fbgemm op", fbgemm_op),
        ("torchrec", torchrec),
        ("ray", ray),
        ("ray token", lambda: ray_token(os.environ, Path.home())),
        ("machine", machine),
        ("data mirror", lambda: data_mirror(os.environ.get("RETILT_DATA_MIRROR"))),
    ]
    if uri is not None:
        facts.append(("storage", lambda: store(uri)))
    return [_attempt(name, check) for name, check in facts]


def report(checks: list[Check]) -> str:
    """The checks as text, each mend below its line."""
    width = max(len(each.name) for each in checks)
    lines = []
    for each in checks:
        lines.append(f"{each.mark} {each.name:<{width}}  {each.found}")
        if each.mend:
            lines.append(f"  {'':<{width}}  → {each.mend}")
    return "\n".join(lines)


def _attempt(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as problem:  # whatever a broken installation raises is a finding
        return Check(
            name, f"{type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else ''}", REINSTALL
        )


def python(version: tuple[int, ...], platform: str) -> Check:
    """Linux with Python 3.11, 3.12 or 3.13."""
    found = f"{'.'.join(map(str, version))} on {platform}"
    if platform != "linux":
        return Check("python", found, "use Linux: FBGEMM publishes no other wheels")
    if not (3, 11) <= version < (3, 14):
        return Check("python", found, "install Python 3.11, 3.12 or 3.13 and " + REINSTALL)
    return Check("python", found)


def torch() -> Check:
    """The release that TorchRec 1.8 was built against; names its flavour."""
    module: Any = importlib.import_module("torch")
    flavour = f"CUDA {module.version.cuda}, {module.cuda.device_count()} GPU" if module.version.cuda else "CPU build"
    wrong = not module.__version__.startswith(TORCH)
    return Check("torch", f"{module.__version__} ({flavour})", REINSTALL if wrong else "")


def fbgemm() -> Check:
    """FBGEMM's build against torch's; see ``fbgemm_flavour``."""
    module: Any = importlib.import_module("torch")
    versions = {}
    for name in ("fbgemm-gpu", "fbgemm-gpu-cpu"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return fbgemm_flavour(versions, module.version.cuda is not None, module.cuda.is_available())


def fbgemm_flavour(versions: Mapping[str, str], torch_has_cuda: bool, gpu: bool) -> Check:
    """Both builds install the same folder ``fbgemm_gpu/``, so exactly one may be there, and the one that fits torch."""
    found = ", ".join(f"{name} {version}" for name, version in versions.items()) or "not installed"
    cuda_build = "fbgemm-gpu" in versions and SHIM not in versions["fbgemm-gpu"]
    cpu_build = "fbgemm-gpu-cpu" in versions
    mend = MEND_CUDA if torch_has_cuda and gpu else MEND_CPU
    if cuda_build and cpu_build:
        return Check("fbgemm", f"{found}: two builds, one written over the other", mend)
    if not cuda_build and not cpu_build:
        return Check("fbgemm", found, mend)
    if cuda_build and not torch_has_cuda:
        return Check("fbgemm", f"{found}: the CUDA build beside a torch without CUDA", mend)
    if cpu_build and gpu:
        return Check("fbgemm", f"{found}: the CPU build, although torch sees a GPU", mend, fatal=False)
    return Check("fbgemm", found)


def fbgemm_op() -> Check:
    """An operator that the data path needs gives the right answer."""
    module: Any = importlib.import_module("torch")
    importlib.import_module("fbgemm_gpu")
    sums = module.ops.fbgemm.asynchronous_complete_cumsum(module.tensor([1, 2])).tolist()
    return Check(
        "fbgemm op", "works" if sums == [0, 1, 3] else f"wrong sums {sums}", "" if sums == [0, 1, 3] else MEND_CPU
    )


def torchrec() -> Check:
    """TorchRec imports and has the tested release."""
    module: Any = importlib.import_module("torchrec")
    version = str(module.__version__)
    return Check("torchrec", version, "" if version.startswith(TORCHREC) else REINSTALL)


def _installed(distribution: str) -> bool:
    try:
        return bool(importlib.metadata.version(distribution))
    except importlib.metadata.PackageNotFoundError:
        return False


def ray() -> Check:
    """Ray's release, with the extra that brings the dashboard and the Job API."""
    module: Any = importlib.import_module("ray")
    # Not find_spec: colorful puts an object without a spec in its place once it has been imported.
    if any(not _installed(name) for name in RAY_DEFAULT):
        return Check(
            "ray", f"{module.__version__} without the Job API", f"python -m pip install 'ray[default]=={RAY}*'"
        )
    return Check(
        "ray", f"{module.__version__} with the Job API", "" if module.__version__.startswith(RAY) else REINSTALL
    )


def ray_token(environment: Mapping[str, str], home: Path) -> Check:
    """Ray's ports listen on every interface, so that a token is the only guard; 2.60 demands it unevenly."""
    mode = environment.get("RAY_AUTH_MODE", "")
    held = any(environment.get(key) for key in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    held = held or (home / ".ray" / "auth_token").exists()
    if mode == "disabled":
        return Check(
            "ray token", "switched off: anyone who reaches the ports can run code", "export RAY_AUTH_MODE=token"
        )
    if mode != "token":
        return Check(
            "ray token", "RAY_AUTH_MODE is not set", "for `ray job submit`: export RAY_AUTH_MODE=token", fatal=False
        )
    mend = "" if held else "ray get-auth-token --generate (a local Ray makes its own)"
    return Check("ray token", "mode token" + ("" if held else ", no token yet"), mend, fatal=False)


def machine() -> Check:
    """Cores that this process may use and memory that is free; training the demo needs about 4 GiB."""
    cores = len(os.sched_getaffinity(0))
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    shared = os.statvfs("/dev/shm")
    found = (
        f"{cores} cores, {free / 2**30:.1f} GiB free, {shared.f_bavail * shared.f_frsize / 2**30:.1f} GiB shared memory"
    )
    return Check(
        "machine",
        found,
        "free some memory: below 4 GiB workers may be killed" if free < LEAST_MEMORY else "",
        fatal=False,
    )


def data_mirror(mirror: str | None) -> Check:
    """Where known data sets come from."""
    if not mirror:
        return Check("data mirror", "RETILT_DATA_MIRROR is not set: known data sets come from their official addresses")
    if storage.exists(mirror):
        return Check("data mirror", mirror)
    return Check(
        "data mirror", f"{mirror}: nothing there", "set RETILT_DATA_MIRROR to a folder or URI that exists, or unset it"
    )


def store(uri: str) -> Check:
    """Write, read back and delete one small object below ``uri``."""
    name = f".retilt-doctor-{secrets.token_hex(8)}"
    probe = storage.join(uri, name)
    text = name.encode()
    try:
        storage.require_reachable(uri)
        storage.write_bytes(probe, text)
        same = storage.read_bytes(probe) == text
        storage.delete(probe)
    except InputError as problem:
        return Check(
            "storage", str(problem), "check the URI, and credentials in the environment (AWS_ACCESS_KEY_ID, …)"
        )
    except RetiltError as problem:
        return Check("storage", str(problem), "check that the store is up, and AWS_ENDPOINT_URL")
    return Check(
        "storage", f"{uri}: wrote, read, deleted", "" if same else "the store returned other bytes than it was given"
    )
