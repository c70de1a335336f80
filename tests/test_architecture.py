"""The house rules that a program can check: which way imports run, how large things grow, what must not appear."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "narrows"
FILES = sorted(PACKAGE.rglob("*.py"))

LEAVES = {"balance", "errors", "metrics", "findings", "launch", "stopwatch", "world"}
NOUNS = LEAVES | {"schema", "files", "tensorfile"}
MODEL = {"networks", "model", "train"}
DATA = {"sources", "prepare"}
WAIST = {"fitted", "continued", "rows", "sizing", "fitting"}
ALLOWED = {
    "balance": set(),
    "errors": set(),
    "metrics": set(),
    "findings": {"errors"},
    "launch": {"errors"},
    "stopwatch": set(),
    "world": {"errors", "launch", "stopwatch"},
    "schema": {"errors"},
    "files": {"errors"},
    "tensorfile": {"errors", "files"},
    "sources": {"errors", "schema", "files"},
    "prepare": NOUNS | {"sources"},
    "networks": {"errors", "schema", "world"},
    "model": {"errors", "schema", "world", "networks"},
    "train": NOUNS | {"networks", "model"},
    "fitted": NOUNS | MODEL | DATA,
    "rows": NOUNS | MODEL | DATA,
    "continued": NOUNS | MODEL | DATA | {"fitted"},
    "sizing": NOUNS | MODEL,
    "fitting": NOUNS | MODEL | DATA | {"fitted", "continued", "rows", "sizing"},
    "tasks": NOUNS | MODEL | DATA | WAIST,
    "report": NOUNS | MODEL | DATA | WAIST | {"tasks"},
    "containers": DATA,
    "estimators": NOUNS | MODEL | DATA | WAIST | {"tasks", "containers"},
    "around": {"fitted", "estimators"},
    "imputer": NOUNS | DATA | {"networks", "train", "estimators", "around", "containers", "tasks"},
    "denoiser": NOUNS | DATA | {"networks", "train", "estimators", "around"},
    "detector": NOUNS | {"sources", "tasks", "containers", "estimators"},
    "options": {"errors", "files"},
    "applied": {"options"} | NOUNS | DATA | WAIST,
    "told": {"applied"} | NOUNS | WAIST | {"tasks"},
    "verbs": {"options", "applied", "told"} | NOUNS | MODEL | DATA | WAIST | {"tasks", "report"},
    "jobs": {"options", "applied"} | NOUNS | MODEL | DATA | WAIST | {"tasks"},
    "cli": {"errors", "launch", "verbs", "jobs", "__init__"},
    "__main__": {"cli"},
}


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """Every narrows module that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == "narrows":
            if node.module == "narrows":
                yield from (f"narrows.{name.name}" for name in node.names)
            else:
                yield node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] == "narrows")
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path} imports relatively"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    here = room(path)
    if here == "__init__":
        return
    for module in imports(path):
        there = module.split(".")[1]
        if there == "__version__":
            continue
        assert there == here or there in ALLOWED[here], f"{path.name} ({here}) imports {module}"
        assert there not in ("sources", "prepare", "networks", "model", "train", "tasks", "report") or (
            module.count(".") >= 2
        ), f"{path.name} imports through the __init__ of {there}"


def test_the_model_branch_never_sees_a_file():
    for path in FILES:
        if room(path) in ("networks", "model"):
            assert "pyarrow" not in path.read_text() and "open(" not in path.read_text()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{node.name} has {length} lines"


def test_every_file_says_what_it_is():
    for path in FILES:
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_no_folder_in_a_room_and_no_drawers():
    drawers = {"utils", "util", "common", "helpers", "helper", "base", "core", "manager", "misc"}
    for path in FILES:
        parts = path.relative_to(PACKAGE).parts
        assert len(parts) <= 2, path
        assert not drawers & {part.removesuffix(".py") for part in parts}, path


def test_nothing_is_pickled_or_executed():
    for path in FILES:
        names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        assert not names & {"pickle", "joblib", "eval", "exec", "shelve", "marshal"}, path
        for words in ("allow_pickle=True", "os.system", "shell=True", "torch.load(", "weights_only=False"):
            assert words not in path.read_text(), (path, words)


def test_help_answers_without_torch():
    code = (
        "import sys, narrows.cli\n"
        "try: narrows.cli.app(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'sklearn', 'pyarrow'} & set(sys.modules), 'help is heavy'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "reconstruct" in done.stdout


def test_public_names_exist():
    import narrows

    for name in narrows.__all__:
        assert getattr(narrows, name) is not None
    with pytest.raises(AttributeError, match="Autoencoders"):
        _ = narrows.Autoencoders
