"""The rules of the layout: imports point down, a library has one owner, `--help` loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ddp_cli"
FILES = sorted(PACKAGE.rglob("*.py"))

FLOORS = [
    ["cli"],
    ["commands"],
    ["deploy"],
    ["core"],
    ["data"],
    ["diagnosis"],
    ["sim"],
    ["presets"],
    ["config"],
    ["tasks"],
    ["rotation", "console", "options", "parallel", "disk"],
    ["errors"],
    ["__init__"],
]
"""From the top. A file imports from its own room (a folder) or from floors below."""

OWNERS = {
    "robosuite": ["sim/simulator.py", "sim/stepping.py"],
    "mujoco": ["sim/renderer.py", "sim/simulator.py", "sim/stepping.py"],
    "h5py": ["data/demos.py", "data/recording.py", "data/robomimic.py"],
    "pyarrow": ["data/parquet.py"],
    "zarr": ["data/store.py", "data/store_writer.py"],
    "imageio": ["sim/video.py"],
    "PIL": ["sim/overlay.py"],
    "rich": ["console.py"],
    "scipy": ["rotation.py"],
    "matplotlib": ["core/curves.py"],
    "wandb": ["core/metrics.py"],
    "onnxruntime": ["core/onnx_policy.py", "deploy/export.py", "deploy/graphs.py", "deploy/runtime.py"],
    "huggingface_hub": ["deploy/hub.py"],
    "websockets": ["deploy/client.py", "deploy/server.py"],
    "msgpack": ["deploy/client.py"],
    "diffusers.schedulers": ["core/diffusion.py"],
    "diffusers": ["core/diffusion.py", "core/optimisation.py"],
}

HEAVY = {
    "torch",
    "torchvision",
    "diffusers",
    "h5py",
    "pyarrow",
    "zarr",
    "robosuite",
    "mujoco",
    "imageio",
    "PIL",
    "numpy",
    "scipy",
    "pydantic",
    "matplotlib",
}


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.append(node.module or "")
            found += [f"{node.module}.{alias.name}" for alias in node.names if node.module == "ddp_cli"]
    return found


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def floor(name: str) -> int:
    return next(i for i, names in enumerate(FLOORS) if name in names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module in imports(path):
        if module == "ddp_cli" or not module.startswith("ddp_cli."):
            continue
        other = room(module)
        if other == "__version__":
            continue
        same_room = other == own and (PACKAGE / own).is_dir()
        assert same_room or floor(other) > floor(own), f"{path.name} imports {module}"


@pytest.mark.parametrize("library", OWNERS)
def test_every_library_has_one_owner(library: str) -> None:
    users = [
        str(path.relative_to(PACKAGE))
        for path in FILES
        if any(m == library or m.startswith(library + ".") for m in imports(path))
    ]
    assert users == OWNERS[library]


def test_help_loads_nothing_heavy() -> None:
    code = f"import sys, ddp_cli.cli; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_sim_knows_no_torch() -> None:
    for path in (PACKAGE / "sim").glob("*.py"):
        assert not {m.split(".")[0] for m in imports(path)} & {"torch", "diffusers"}
