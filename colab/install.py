# The address is that of pyproject.toml; `colab/build.py` puts it in.
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ADDRESS = "git+{{repository}}@{{tag}}"


def install():
    """Installs the zoo, and leaves jax, numpy and their drivers as they are."""
    versions = {d.name: d.version for d in importlib.metadata.distributions()}
    fixed = [
        f"{name}=={version}"
        for name, version in versions.items()
        if name.lower().startswith(("jax", "flax", "libtpu", "numpy"))
    ]
    constraints = Path(tempfile.mkdtemp()) / "constraints.txt"
    constraints.write_text("\n".join(fixed))
    # Where the address does not answer: an uploaded wheel, or a checkout.
    local = sorted(Path().glob("canon_zoo-*.whl"))[-1:]
    folders = Path(), Path(".."), Path("canon-zoo")
    local += [f for f in folders if (f / "zoo" / "registry.py").is_file()]
    for source in (ADDRESS, *(path.resolve().as_uri() for path in local)):
        print(f"Installing the zoo from {source}; this takes about a minute.")
        command = [sys.executable, "-m", "pip", "install", "-q", "-c", constraints]
        command.append(f"canon-zoo[train] @ {source}")
        asked = os.environ | {"GIT_TERMINAL_PROMPT": "0"}  # Nobody can answer here.
        done = subprocess.run(command, env=asked, capture_output=True, text=True)
        if done.returncode == 0:
            importlib.invalidate_caches()
            return
        print(done.stderr[-1000:])
    raise RuntimeError(
        f"{ADDRESS} does not answer, and nothing else here could be installed. "
        "Upload the file canon_zoo-{{version}}-py3-none-any.whl (the folder at the "
        "left), or a checkout as the folder canon-zoo, and run this cell again."
    )


if importlib.util.find_spec("zoo") is None:
    install()
