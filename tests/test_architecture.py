"""The rules of the house, read from the source: layers, cycles, op folders, docstrings, size budgets."""

import ast
import re
import statistics
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fastssl"
LAYERS = {
    "extension": 0,
    "device": 0,
    "allocator": 1,
    "ops": 1,
    "data": 1,
    "nn": 2,
    "models": 3,
    "training": 4,
    "tasks": 5,
    "analysis": 5,
    "cli": 6,
    "__main__": 7,
}
"""Room -> layer. A module imports from lower layers and from its own room, never sideways or up."""

OP_FILES = {"__init__.py", "api.py", "reference.py", "stock.py", "native.py", "cases.py", "README.md"}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "misc", "common"}
MAX_FILE_LINES, MAX_MEDIAN_FILE_LINES = 600, 180
MAX_FUNCTION_LINES, MAX_MEDIAN_FUNCTION_LINES = 80, 12
MAX_KERNEL_LINES = 150
MAX_REFERENCE_CODE_LINES = 40


@cache
def sources() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(tree: ast.Module) -> set[str]:
    """Every fastssl module that a file imports, at any depth."""
    known = {module_name(path) for path in sources()}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}: write the full name"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in known else node.module)
    return {name for name in found if name.split(".")[0] == "fastssl"}


def room(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def functions(tree: ast.Module) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def body_lines(function: ast.FunctionDef) -> int:
    """Lines of a function without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) and len(function.body) > 1 else function.body
    return body[-1].end_lineno - body[0].lineno + 1


def test_every_room_has_a_layer():
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in sources()}
    assert rooms - {"__init__", "__pycache__"} <= set(LAYERS)


def test_imports_point_downward():
    wrong = []
    for path, tree in sources().items():
        own = room(module_name(path))
        if own is None:
            continue
        for target in imported_modules(tree):
            other = room(target)
            if other is not None and other != own and LAYERS[other] >= LAYERS[own]:
                wrong.append(f"{path.relative_to(ROOT)} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_data_does_not_know_torch_nn():
    wrong = [
        str(path.relative_to(ROOT))
        for path, tree in sources().items()
        if room(module_name(path)) == "data"
        and re.search(r"\btorch\.nn\b|from torch import .*\bnn\b", path.read_text())
    ]
    assert not wrong


def test_no_import_cycles():
    graph = {module_name(path): imported_modules(tree) for path, tree in sources().items()}
    state: dict[str, int] = {}

    def visit(module: str, trail: tuple[str, ...]) -> None:
        if state.get(module) == 2:
            return
        assert state.get(module) != 1, "import cycle: " + " -> ".join((*trail[trail.index(module) :], module))
        state[module] = 1
        for target in sorted(graph.get(module, ())):
            if target != module and target != "fastssl":
                visit(target, (*trail, module))
        state[module] = 2

    for module in sorted(graph):
        if module != "fastssl":
            visit(module, ())


def test_op_folders_are_complete():
    folders = [folder for folder in (PACKAGE / "ops").iterdir() if folder.is_dir() and folder.name != "__pycache__"]
    assert {folder.name for folder in folders} == {
        "adamw",
        "attention",
        "bias_gelu",
        "cached_attention",
        "decoder_block",
        "layer_norm",
        "linear_cross_entropy",
        "pre_norm_block",
        "quantized_linear",
        "skinny_linear",
    }
    for folder in folders:
        assert not OP_FILES - {path.name for path in folder.iterdir()}, folder.name
        assert (ROOT / "csrc" / folder.name / f"{folder.name}.h").exists()
        assert list((ROOT / "tests" / "ops").glob(f"test_{folder.name}*.py"))
        assert (ROOT / "benchmarks" / "ops" / f"{folder.name}.py").exists()


def test_references_stay_short():
    for path in (PACKAGE / "ops").glob("*/reference.py"):
        lines = sum(body_lines(function) for function in functions(sources()[path]))
        assert lines <= MAX_REFERENCE_CODE_LINES, f"{path.relative_to(ROOT)}: {lines} lines of code"


def test_public_names_have_docstrings():
    missing = []
    for path, tree in sources().items():
        if path.name != "__init__.py" and not ast.get_docstring(tree):
            missing.append(f"{path.relative_to(ROOT)}: module")
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                if not ast.get_docstring(node):
                    missing.append(f"{path.relative_to(ROOT)}: {node.name}")
                for method in node.body if isinstance(node, ast.ClassDef) else ():
                    public = isinstance(method, ast.FunctionDef) and not method.name.startswith("_")
                    if public and not ast.get_docstring(method):
                        missing.append(f"{path.relative_to(ROOT)}: {node.name}.{method.name}")
    assert not missing, "\n".join(missing)


def test_config_fields_have_docstrings():
    missing = []
    for path, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
                for field, after in zip(node.body, [*node.body[1:], None], strict=True):
                    documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                    if isinstance(field, ast.AnnAssign) and not documented:
                        missing.append(f"{path.relative_to(ROOT)}: {node.name}.{field.target.id}")
    assert not missing, "\n".join(missing)


def test_file_sizes():
    lines = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in sources()}
    too_long = {str(path): count for path, count in lines.items() if count > MAX_FILE_LINES}
    assert not too_long
    assert statistics.median(count for count in lines.values() if count) <= MAX_MEDIAN_FILE_LINES
    assert not [path for path in sources() if path.stem in FORBIDDEN_NAMES]


def test_function_sizes():
    sizes = {
        f"{path.relative_to(ROOT)}:{function.name}": body_lines(function)
        for path, tree in sources().items()
        for function in functions(tree)
    }
    too_long = {name: size for name, size in sizes.items() if size > MAX_FUNCTION_LINES}
    assert not too_long
    assert statistics.median(sizes.values()) <= MAX_MEDIAN_FUNCTION_LINES


@pytest.mark.parametrize("path", sorted((ROOT / "csrc").rglob("*.[ch]*")), ids=lambda path: path.name)
def test_native_sizes(path: Path):
    text = path.read_text().splitlines()
    assert len(text) <= MAX_FILE_LINES
    kernels = path.suffix in (".cu", ".cuh") or path.stem.endswith("_cpu")
    limit = MAX_KERNEL_LINES if kernels else MAX_FUNCTION_LINES
    start = None
    for number, line in enumerate(text):
        # A definition at the margin opens with a line that ends in "{" and closes with a lone "}" (clang-format).
        if re.match(r"^[A-Za-z].*\)( const)? \{$", line) and not line.startswith("namespace"):
            start = number
        elif line == "}" and start is not None:
            assert number - start <= limit, f"{path.name}:{start + 1}: function of {number - start} lines"
            start = None


def test_errors_are_not_swallowed():
    wrong = []
    for path, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                names = ast.unparse(node.type) if node.type else "everything"
                importing = "ImportError" in names or "ModuleNotFoundError" in names
                if names in ("everything", "Exception", "BaseException") and not any(
                    isinstance(inner, ast.Raise) for inner in ast.walk(node)
                ):
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} swallows {names}")
                if importing and path.name != "extension.py":
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} catches {names}")
    assert not wrong, "\n".join(wrong)


def test_environment_is_not_read():
    wrong = [str(path.relative_to(ROOT)) for path in sources() if re.search(r"os\.(environ|getenv)", path.read_text())]
    assert not wrong
