"""The rules of the layout: imports point down, without cycles; a library belongs to one package; `ddp --help` loads
nothing heavy.
"""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ddp_cli"
FILES = sorted(PACKAGE.rglob("*.py"))

LAYERS = [
    {"__main__"},
    {"cli", "__init__"},
    {"commands", "api"},
    {"report"},
    {"training", "deploy"},
    {"data", "inference"},
    {"core", "evaluation", "presets"},
    {"sim", "video", "train_config"},
    {"policy_config"},
    {"task_file"},
    {"task_difference", "cluster"},
    {"tasks", "parallel", "image_size"},
    {"robots", "built_in_tasks"},
    {"schema"},
    {"base_config", "json_file", "rotation", "disk", "console", "selection"},
    {"locks", "error_messages", "user_modules"},
    {"errors", "choices", "seeds", "memory", "action_limits", "resize", "interruption", "checkpoint_files"},
]
"""From the top; an entry is a package or a file beside them. A file imports from its own package and lower layers."""

OWNERS = {
    "robosuite": {"sim"},
    "gymnasium": {"sim"},
    "mujoco": {"sim"},
    "h5py": {"data"},
    "pyarrow": {"data"},
    "zarr": {"data"},
    "imageio": {"video"},
    "imageio_ffmpeg": {"video"},
    "PIL": {"video"},
    "imagecodecs": {"data"},
    "rich": {"console"},
    "ray": {"cluster"},
    "scipy": {"rotation", "evaluation"},
    "matplotlib": {"training"},
    "wandb": {"training"},
    "onnx": {"inference", "deploy"},
    "onnxruntime": {"inference", "deploy"},
    "huggingface_hub": {"deploy"},
    "websockets": {"deploy"},
    "msgpack": {"deploy"},
    "diffusers": {"core"},
    "torch": {"core", "training", "inference", "deploy", "commands"},
}

HEAVY = {
    "torch", "torchvision", "diffusers", "h5py", "pyarrow", "zarr", "robosuite", "mujoco", "imageio", "PIL", "numpy",
    "scipy", "ray", "pydantic", "matplotlib", "rich.markdown", "onnx", "onnxruntime",
}  # fmt: skip


def package_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def layer_of(package: str) -> int:
    return next(i for i, packages in enumerate(LAYERS) if package in packages)


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Modules that a file imports, anywhere in it or only when it is itself imported."""
    tree = ast.parse(path.read_text())
    names = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= inner & MODULES.keys() or {node.module or ""}
    return names


def package_imports(path: Path) -> set[str]:
    return {name for name in imports(path) if name.startswith("ddp_cli.") and name in MODULES}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    own = package_of(path)
    for name in package_imports(path) - {module_name(path)}:
        other = package_of(MODULES[name])
        assert other == own or layer_of(other) > layer_of(own), f"{path.relative_to(PACKAGE)} imports {name}"


def test_imports_have_no_circle() -> None:
    graph = {name: package_imports(path) - {name} for name, path in MODULES.items()}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("library", OWNERS)
def test_a_library_belongs_to_its_packages(library: str) -> None:
    packages = {
        package_of(path)
        for path in FILES
        if any(name == library or name.startswith(f"{library}.") for name in imports(path))
    }
    assert packages == OWNERS[library]


@pytest.mark.parametrize(
    ("name", "imported"),
    [
        ("deploy/client", set()),
        ("action_limits", set()),
        ("resize", set()),
        ("deploy/runtime", {"ddp_cli.action_limits", "ddp_cli.resize"}),
        ("deploy/streaming", {"ddp_cli.action_limits", "ddp_cli.deploy.runtime"}),
        ("deploy/device_check", {"ddp_cli.deploy.runtime", "ddp_cli.deploy.streaming"}),
    ],
)
def test_files_that_leave_the_package_import_each_other_alone(name: str, imported: set[str]) -> None:
    """action_limits.py and resize.py are copied with runtime.py; streaming.py imports others for their types alone."""
    assert package_imports(PACKAGE / f"{name}.py") == imported


@pytest.mark.parametrize(
    "name", ["deploy/client", "deploy/device_check", "deploy/runtime", "deploy/streaming", "action_limits", "resize"]
)
def test_files_that_leave_the_package_suit_python_3_8(name: str) -> None:
    """Of what later versions added: syntax, `zip(strict=)`, unions, subscripts of built-in classes, `typing.Self`."""
    tree = ast.parse((PACKAGE / f"{name}.py").read_text(), feature_version=(3, 8))
    for node in walk_executed(tree):
        is_union = isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr)
        is_strict = isinstance(node, ast.Call) and any(keyword.arg == "strict" for keyword in node.keywords)
        value = node.value if isinstance(node, ast.Subscript) else None
        is_subscript = ast.unparse(value).split(".")[-1] in NOT_SUBSCRIPTED if value else False
        is_self = isinstance(node, ast.ImportFrom) and any(alias.name == "Self" for alias in node.names)
        is_newer = is_union or is_strict or is_subscript or is_self
        assert not is_newer, ast.unparse(node)


NOT_SUBSCRIPTED = {"list", "dict", "tuple", "set", "deque", "ndarray", "Future", "Callable", "Mapping", "Sequence"}


def walk_executed(node: ast.AST) -> Iterator[ast.AST]:
    """`node` and all nodes below it but annotations and what only type checkers read."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    yield node
    for field, value in ast.iter_fields(node):
        if field not in {"annotation", "returns"}:
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from walk_executed(child)


def test_help_loads_nothing_heavy() -> None:
    code = f"import sys, ddp_cli.cli; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
