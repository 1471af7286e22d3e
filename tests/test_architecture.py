"""The arrows between packages, what importing costs, and where randomness may come from."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("pairforge", "degradations", "filters", "generators", "qc", "pipelines", "training", "eval")
MAY_USE = {
    "pairforge": set(),
    "degradations": {"pairforge"},
    "filters": {"pairforge"},
    "generators": {"pairforge"},
    "qc": {"pairforge"},
    "pipelines": {"pairforge", "degradations", "filters", "generators", "qc"},
    "training": {"pairforge", "degradations", "eval"},
    "eval": {"pairforge", "qc"},
}
BRIDGE = "degradations.albumentations"
"""Loads Albumentations, and torch with it, and tells it by an environment variable not to ask the network."""
CONTRACT_MAY_IMPORT = {
    *("PIL", "cv2", "fsspec", "numpy", "pairforge", "pyarrow", "pydantic", "pydantic_core", "webdataset", "yaml"),
    *("aiobotocore", "aiohttp", "botocore", "s3fs"),  # with s3:// URLs alone
    *("google", "openai"),  # with remote clients alone
    *("torch", "transformers"),  # with the local chat alone
}
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
)


def _imports(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} uses a relative import"
            found.add(node.module)
    return found


def _path(module: str) -> Path:
    plain = ROOT / (module.replace(".", "/") + ".py")
    return plain if plain.exists() else ROOT / module.replace(".", "/") / "__init__.py"


@pytest.mark.parametrize("module", MODULES)
def test_arrows_point_one_way(module: str) -> None:
    package = module.split(".")[0]
    used = {name.split(".")[0] for name in _imports(_path(module))} & set(PACKAGES)
    allowed = MAY_USE[package] | {package}
    if module.startswith("pipelines.cli"):
        allowed = set(PACKAGES)
    assert used <= allowed, f"{module} uses {sorted(used - allowed)}"


def test_the_contract_needs_few_libraries() -> None:
    for module in MODULES:
        if module.startswith("pairforge"):
            outside = {name.split(".")[0] for name in _imports(_path(module))} - set(sys.stdlib_module_names)
            assert outside <= CONTRACT_MAY_IMPORT, f"{module} imports {sorted(outside - CONTRACT_MAY_IMPORT)}"


def _about_torch() -> set[str]:
    """Modules of training whose subject is torch: those that import it, and those that import them."""
    training = {module: _imports(_path(module), top_level_only=True) for module in MODULES if "training" in module}
    found = {module for module, used in training.items() if any(name.split(".")[0] == "torch" for name in used)}
    while more := {module for module, used in training.items() if used & found} - found:
        found |= more
    return found


def test_importing_loads_neither_ray_nor_torch_and_has_no_side_effect() -> None:
    """Every module is imported in one fresh process, after the libraries that it imports itself."""
    script = """
import sys, os, random, logging, threading, importlib
import numpy, cv2
ours, libraries = (part.split() for part in sys.argv[1:])
for name in libraries:
    importlib.import_module(name)
before = (dict(os.environ), random.getstate(), numpy.random.get_state()[1].tolist(), threading.active_count(),
          logging.getLogger().level, list(logging.getLogger().handlers), cv2.getNumThreads(), os.getcwd())
for name in ours:
    importlib.import_module(name)
    assert "torch" not in sys.modules, f"{name} loads torch"
    assert "ray" not in sys.modules, f"{name} loads ray"
after = (dict(os.environ), random.getstate(), numpy.random.get_state()[1].tolist(), threading.active_count(),
         logging.getLogger().level, list(logging.getLogger().handlers), cv2.getNumThreads(), os.getcwd())
for number, (x, y) in enumerate(zip(before, after)):
    assert x == y, f"importing changed process state number {number}"
"""
    modules = sorted(set(MODULES) - {BRIDGE} - _about_torch())
    libraries = {name for module in modules for name in _imports(_path(module), top_level_only=True)}
    libraries = {name for name in libraries if name.split(".")[0] not in PACKAGES}
    arguments = [" ".join(modules), " ".join(sorted(libraries))]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_nothing_needs_the_bridge_or_its_library() -> None:
    for module in MODULES:
        if module != BRIDGE:
            used = _imports(_path(module))
            library = "albumentations" in {name.split(".")[0] for name in used}
            assert BRIDGE not in used and (not library or module.startswith("training.")), module


def test_randomness_comes_from_rng_for_alone() -> None:
    for module in MODULES:
        if module == "pairforge.rng":
            continue
        assert not _imports(_path(module)) & {"random", "secrets"}, f"{module} imports another source of randomness"
        for node in ast.walk(ast.parse(_path(module).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert not called.startswith(("np.random.", "numpy.random.", "cv2.randn", "cv2.randu", "cv2.setRNG")), (
                    f"{module}:{node.lineno} draws from {called}"
                )


def test_packages_of_the_distribution_are_the_rooms_of_the_house() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.split(".")[0] for name in project["tool"]["setuptools"]["packages"]}
    assert packages == set(PACKAGES)
    listed = set(project["tool"]["setuptools"]["packages"])
    assert listed == {module for module in MODULES if _path(module).name == "__init__.py"}
