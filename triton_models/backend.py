"""The tritonserver inside the PyPI package ``nvidia-pytriton``, made ready for one server.

Four traps, each handled here:

* the stub for this interpreter's version must lie in the backend folder: a private folder of symbolic
  links per server, so that neither site-packages nor a shared cache is written to;
* the stub finds its interpreter through ``PATH`` only: this environment's ``bin`` goes first;
* the stub is linked against ``libpython3.x.so.1.0``, which the package does not carry: this
  interpreter's own is linked into the private folder, and a stub that does not start is refused;
* with NumPy ≥ 2 in that interpreter outputs come back empty without an error: refused at start.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from triton_models.errors import ServerError

PACKAGE = "nvidia-pytriton"
INSTALL_HINT = "pip install 'prl-puts[embedded]'"
STUB = "triton_python_backend_stub"
STUB_PACKAGES = ("numpy", "onnxruntime")
"""What the generic Python-backend model imports."""
LOADER_FAILED = 127
"""Exit status when the dynamic linker finds no library; the stub itself, run without arguments, says 1."""


def package_folder() -> Path:
    """The ``tritonserver`` folder of the installed package, found without importing the package.

    Raises:
        ServerError: the package is not installed, or carries no server.
    """
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise ServerError(f"the embedded tritonserver needs the package {PACKAGE}; {INSTALL_HINT}")
    folder = Path(next(iter(spec.submodule_search_locations))) / "tritonserver"
    if not (folder / "bin" / "tritonserver").is_file():
        raise ServerError(f"{folder}: {PACKAGE} carries no tritonserver on this platform; use a container")
    return folder


def package_version() -> str:
    """Version of the installed package, or ``unknown``."""
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def stub_interpreter() -> Path:
    """The interpreter that the stub will find: ``python3`` of this environment."""
    return Path(sys.prefix) / "bin" / "python3"


def stub_package_versions() -> dict[str, str]:
    """Versions of :data:`STUB_PACKAGES` as the stub's interpreter sees them; absent ones are left out.

    Asked in a process of its own with ``-E``, since the stub ignores ``PYTHONPATH``.

    Raises:
        ServerError: that interpreter does not run.
    """
    code = (
        "import importlib.metadata as m, sys\n"
        "for name in sys.argv[1:]:\n"
        "    try: print(name, m.version(name))\n"
        "    except m.PackageNotFoundError: pass\n"
    )
    command = [str(stub_interpreter()), "-E", "-c", code, *STUB_PACKAGES]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise ServerError(
            f"{command[0]}: the interpreter for Triton's Python backend does not run: {error}"
        ) from error
    return dict(line.split() for line in done.stdout.splitlines())


def check_stub_packages(versions: Mapping[str, str]) -> None:
    """Refuse an interpreter whose answers would be empty or absent.

    Raises:
        ServerError: NumPy is 2 or newer, or a package is missing.
    """
    missing = [name for name in STUB_PACKAGES if name not in versions]
    if missing:
        raise ServerError(
            f"{stub_interpreter()}: Triton's Python backend needs {' and '.join(missing)} there; "
            f"{INSTALL_HINT}"
        )
    major = versions["numpy"].partition(".")[0]
    if not major.isdigit() or int(major) >= 2:
        raise ServerError(
            f"{stub_interpreter()} has NumPy {versions['numpy']}; the embedded tritonserver needs NumPy < 2, "
            f"with 2 its outputs come back empty; {INSTALL_HINT} (pins numpy==1.26.4)"
        )


def link_backends(package: Path, folder: Path) -> Path:
    """Fill ``folder`` with links: ``backends/python`` with this interpreter's stub, ``lib`` with libpython.

    Returns:
        ``folder/backends``.

    Raises:
        ServerError: the package has no stub for this Python version.
    """
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = package / "python_backend_stubs" / python / STUB
    if not stub.is_file():
        have = ", ".join(sorted(item.name for item in (package / "python_backend_stubs").iterdir()))
        raise ServerError(f"{PACKAGE} {package_version()} has no stub for Python {python}; it has {have}")
    backend = folder / "backends" / "python"
    backend.mkdir(parents=True)
    for source in [*(package / "backends" / "python").iterdir(), stub]:
        if source.is_file():
            (backend / source.name).symlink_to(source.resolve())
    # Only this one library, not its folder: a folder would put its libstdc++ before tritonserver's.
    (folder / "lib").mkdir()
    name = f"libpython{python}.so.1.0"
    places = (Path(sysconfig.get_config_var("LIBDIR") or ""), Path(sys.base_prefix) / "lib")
    library = next((place / name for place in places if (place / name).is_file()), None)
    if library is not None:
        (folder / "lib" / name).symlink_to(library)
    return backend.parent


def check_stub_starts(folder: Path, environment: Mapping[str, str]) -> None:
    """Refuse a stub whose libraries are missing: tritonserver would only say that it timed out.

    Raises:
        ServerError: quoting the dynamic linker.
    """
    stub = folder / "backends" / "python" / STUB
    try:
        done = subprocess.run([str(stub)], env=dict(environment), capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise ServerError(f"{stub.resolve()}: Triton's Python stub does not run: {error}") from error
    if done.returncode == LOADER_FAILED:
        reason = " ".join(done.stderr.split()).rpartition(": error while ")[2]
        raise ServerError(
            f"Triton's Python stub does not start ({reason}); {sys.executable} needs its shared libpython "
            "(Debian: the package libpython3.x; pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared)"
        )


def server_environment(package: Path, *libraries: Path) -> dict[str, str]:
    """Environment variables of the server process; ``libraries`` are further folders of shared libraries."""
    environment = dict(os.environ)
    # An inherited interpreter setting would send the stub to another Python.
    for name in ("PYTHONHOME", "PYTHONPATH", "__PYVENV_LAUNCHER__"):
        environment.pop(name, None)
    old = environment.get("LD_LIBRARY_PATH")
    folders = [package.parent.parent / "nvidia_pytriton.libs", *libraries, *([old] if old else [])]
    environment["LD_LIBRARY_PATH"] = ":".join(map(str, folders))
    environment["PATH"] = f"{stub_interpreter().parent}:{environment.get('PATH', os.defpath)}"
    environment["VIRTUAL_ENV"] = sys.prefix
    # __pycache__ in a model repository would be a file that nobody published.
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    return environment
