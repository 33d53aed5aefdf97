"""What no module does, read from the sources (SECURITY.md); what modules do is tested where they are."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "src"
RUNS_CODE = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "runpy", "code"}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "jit.load", "hub.load"}
MUST_BE_OFF = {"trust_remote_code", "allow_pickle", "shell"}
NETWORK = {"socket", "http.client", "urllib.request", "requests", "httpx", "aiohttp", "pooch", "openai", "ftplib"}
DOORS = {
    "irg/downloads.py": "pinned files, when a request needs them",
    "irg/endpoints/client.py": "the endpoints that a recipe or an option names",
    "irg/serving/fetching.py": "hosts that --image-hosts names",
    "irg/serving/server.py": "listens",
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(SOURCES.rglob("*.py")):
        yield str(path.relative_to(SOURCES)), ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> set[str]:
    names = {one.name for node in ast.walk(tree) if isinstance(node, ast.Import) for one in node.names}
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    return names | {str(node.module) for node in froms} | {f"{n.module}.{a.name}" for n in froms for a in n.names}


def problems(tree: ast.Module) -> Iterator[str]:
    """What in a module could run code that came from a file."""
    yield from (f"imports {name}" for name in imported(tree) if name.partition(".")[0] in RUNS_CODE)
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        if name in CALLS or ".".join(name.split(".")[-2:]) in CALLS:
            yield f"calls {name}"
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        for option in MUST_BE_OFF & given.keys():
            if ast.unparse(given[option]) != "False":
                yield f"{name}({option}={ast.unparse(given[option])})"
        if "weights_only" in given and ast.unparse(given["weights_only"]) != "True":
            yield f"{name}(weights_only={ast.unparse(given['weights_only'])})"
        if name.endswith(".from_pretrained") and "use_safetensors" not in given:
            owner = name.split(".")[-2]
            if owner not in ("IRGPipeline", "cls", "Pipeline") and not owner.endswith(("Processor", "Tokenizer")):
                yield f"{name} without use_safetensors"


def test_nothing_runs_code_from_files() -> None:
    """No pickle, no code of a repository, no shell; weights of other libraries only as safetensors."""
    found = [f"{path}: {problem}" for path, tree in modules() for problem in problems(tree)]
    assert not found


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
        "AutoModel.from_pretrained(name)",
        "AutoModel.from_pretrained(name, use_safetensors=True, trust_remote_code=True)",
        "np.load(file, allow_pickle=True)",
    ],
)
def test_it_would_be_seen(line: str) -> None:
    assert [*problems(ast.parse(line))]


def test_only_these_modules_have_a_connection() -> None:
    """Who else wants one has to be written down here, and in SECURITY.md."""
    found = {path for path, tree in modules() if imported(tree) & NETWORK}
    assert found == set(DOORS)


def test_the_tests_that_are_named_exist() -> None:
    page = ROOT / "SECURITY.md"
    if not page.is_file():
        pytest.skip("SECURITY.md is not in the sdist")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text(encoding="utf-8"))
    missing = [f"{file}::{name}" for file, name in named if f"def {name}(" not in (ROOT / file).read_text("utf-8")]
    assert len(named) > 30 and not missing
