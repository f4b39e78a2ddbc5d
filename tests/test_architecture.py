"""Who may import whom, read from the source: nothing of vinfer is imported or run here.

`check(modules)` is a pure function from source text to complaints. The first test runs it over the package;
the rest feed it small sources that each break one rule, so that no rule can rot into one that never fires.

Two kinds of import rule. A *direction* holds for every import anywhere in a file, inside functions and under
TYPE_CHECKING too. A *load* rule holds for what importing a module brings in at once, through any number of
vinfer modules, which is what start-up time and memory depend on.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "vinfer"

EASYDEL = ("easydel", "eformer", "ejkernel", "flax")
BUILD_ONLY = ("vinfer.compiler", "vinfer.checkpoint", *EASYDEL, "transformers", "torch")
JAX = ("jax", "jaxlib")
PICKLES = ("pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib")

HTTP_CLIENTS = ("httpx", "httpcore", "aiohttp", "http.client", "requests", "urllib.request", "urllib3")

RUN_ROOMS = ("vinfer.engine", "vinfer.hosts", "vinfer.images", "vinfer.server", "vinfer.text")
BUILD_ROOMS = ("vinfer.compiler", "vinfer.checkpoint")
PARITY = ("vinfer.parity",)
SHARED = (
    "vinfer.bundle",
    "vinfer.child_process",
    "vinfer.config",
    "vinfer.errors",
    "vinfer.image_processing",
    "vinfer.safetensors_header",
    "vinfer.version",
)
KERNELS = ("vinfer.cpu_kernel",)
COMMANDS = ("vinfer.cli", "vinfer.__main__")
LAUNCH = ("vinfer.launch",)
# `vinfer.load`: the commands' place in a caller's process.
LIBRARY = ("vinfer.llm",)
CLIENTS = ("vinfer.bench", "vinfer.chat")
FIELDS, CONSTRAIN, GENERATE = "vinfer.server.fields", "vinfer.server.constrain", "vinfer.server.generate"
ROUTES, DOCUMENT = "vinfer.server.routes", "vinfer.server.document"
ANSWERS = "vinfer.server.answers"
FORMATS = ("vinfer.checkpoint.hf", "vinfer.checkpoint.gguf")
HOSTS = ("vinfer.hosts",)
# Where arrays live in the engine, and where JAX learns of other hosts; everything else there is plain Python.
ON_DEVICE = (
    "vinfer.engine.loading.compile_count",
    "vinfer.engine.loading.executables",
    "vinfer.engine.loading.load",
    "vinfer.engine.loading.mesh",
    "vinfer.engine.loading.programs",
    "vinfer.engine.runner",
    "vinfer.hosts.process_group",
)
# The event loop's side and the scheduler: not even by a detour.
WITHOUT_JAX = (
    "vinfer.images",
    "vinfer.server",
    "vinfer.text",
    *SHARED,
    "vinfer.engine.grammar",
    "vinfer.engine.grammar_vocabulary",
    "vinfer.engine.request",
    "vinfer.engine.scheduler",
    "vinfer.engine.stream",
    "vinfer.hosts.follower",
    "vinfer.hosts.leader",
)

VAGUE_NAMES = frozenset({"util", "utils", "common", "helper", "helpers", "manager", "managers", "misc"})


@dataclasses.dataclass(frozen=True)
class Rule:
    """`banned` may not be imported from a module under `inside`, unless that is under `but_not`."""

    why: str
    inside: tuple[str, ...]
    banned: tuple[str, ...]
    but_not: tuple[str, ...] = ()


DIRECTIONS = (
    Rule("the run half stands without the build half", RUN_ROOMS, BUILD_ONLY),
    Rule("what both halves share knows neither", SHARED, (*BUILD_ONLY, *RUN_ROOMS)),
    Rule(
        "plain Python, so that it is tested without a device",
        (*WITHOUT_JAX, "vinfer.engine", *HOSTS),
        JAX,
        ON_DEVICE,
    ),
    Rule("one adapter knows EasyDeL", ("vinfer",), EASYDEL, but_not=("vinfer.compiler.easydel",)),
    Rule("tensors are read without a framework", ("vinfer.checkpoint",), (*JAX, *EASYDEL, "torch")),
    Rule(
        "one room knows where weights come from",
        ("vinfer",),
        ("huggingface_hub", "gguf"),
        ("vinfer.checkpoint",),
    ),
    Rule("one module knows llguidance", ("vinfer",), ("llguidance",), ("vinfer.engine.grammar",)),
    Rule("the engine never sees HTTP", ("vinfer.engine",), ("vinfer.server", "starlette", "uvicorn")),
    Rule(
        "text never sees the engine or HTTP",
        ("vinfer.text",),
        ("vinfer.engine", "vinfer.server", "starlette"),
    ),
    Rule(
        "images never see the engine, text or HTTP",
        ("vinfer.images",),
        ("vinfer.engine", "vinfer.text", "vinfer.server", "starlette", "uvicorn"),
    ),
    Rule(
        "one function fetches for users, behind one guard",
        ("vinfer",),
        HTTP_CLIENTS,
        # Clients fetch from the server that their user names, in a process of their own.
        ("vinfer.images.fetch", "vinfer.checkpoint.hub", "vinfer.bench.client", "vinfer.chat.client"),
    ),
    Rule(
        "a client knows a server by its API",
        CLIENTS,
        (
            *BUILD_ONLY,
            *RUN_ROOMS,
            *PARITY,
            *JAX,
            *(room for room in SHARED if room != "vinfer.errors"),
            "numpy",
        ),
    ),
    Rule("one room knows LLVM", ("vinfer",), ("llvmlite",), KERNELS),
    Rule("a kernel knows no model", KERNELS, (*RUN_ROOMS, *BUILD_ROOMS, *SHARED, *EASYDEL)),
    Rule("one module knows ZeroMQ", ("vinfer",), ("zmq",), ("vinfer.hosts.stream",)),
    Rule(
        "one machine serves without a group",
        tuple(room for room in RUN_ROOMS if room not in HOSTS),
        HOSTS,
    ),
    Rule(
        "hosts repeat programs, and know no request",
        HOSTS,
        (
            "vinfer.engine.engine",
            "vinfer.engine.request",
            "vinfer.engine.runner",
            "vinfer.engine.scheduler",
            "vinfer.images",
            "vinfer.server",
            "vinfer.text",
            "starlette",
            "uvicorn",
        ),
    ),
    Rule("one module knows OpenTelemetry", ("vinfer",), ("opentelemetry",), ("vinfer.server.http.traces",)),
    Rule("one file opens images, within limits", ("vinfer",), ("PIL",), ("vinfer.images",)),
    Rule("the build half stands without the run half", BUILD_ROOMS, (*RUN_ROOMS, "starlette", "uvicorn")),
    Rule("a source does not know what is made of it", ("vinfer.checkpoint",), ("vinfer.compiler",)),
    Rule(
        "one child process knows transformers",
        ("vinfer",),
        ("torch", "transformers"),
        but_not=("vinfer.parity.reference", "vinfer.parity.reference"),
    ),
    Rule("what is judged does not know its judge", (*RUN_ROOMS, *BUILD_ROOMS, *SHARED), PARITY),
    Rule(
        "the judge sees a checkpoint, requests and tokens",
        PARITY,
        ("vinfer.compiler", "vinfer.server", "vinfer.text", *ON_DEVICE, *JAX),
    ),
    Rule("commands are the top", ("vinfer",), ("vinfer.cli",), but_not=COMMANDS),
    Rule("only commands build the app", ("vinfer",), ("vinfer.server.app",), but_not=(*COMMANDS, *LIBRARY)),
    Rule(
        "what every request passes knows no route",
        ("vinfer.server.http",),
        (FIELDS, CONSTRAIN, GENERATE, ROUTES, DOCUMENT),
    ),
    Rule(
        "fields are declared before anything is done with them",
        (FIELDS,),
        (CONSTRAIN, GENERATE, ROUTES, DOCUMENT),
    ),
    Rule("a grammar is compiled for any route", (CONSTRAIN,), (GENERATE, ROUTES, DOCUMENT)),
    Rule("an answer is generated for any route", (GENERATE,), (ROUTES, DOCUMENT)),
    Rule("routes do not describe themselves", (ROUTES,), (DOCUMENT,)),
    Rule("an answer's shape knows no writer", (ANSWERS,), (CONSTRAIN, GENERATE, ROUTES, DOCUMENT)),
    Rule("the document is made from types, not from handlers", (DOCUMENT,), (ROUTES,)),
    Rule(
        "the parts of a checkpoint do not know the whole",
        (*FORMATS, "vinfer.checkpoint.rope", "vinfer.checkpoint.families"),
        ("vinfer.checkpoint.checkpoint", "vinfer.checkpoint.source"),
    ),
    Rule("a family is the same in every format", ("vinfer.checkpoint.families",), FORMATS),
    Rule("rotary embedding knows no family", ("vinfer.checkpoint.rope",), ("vinfer.checkpoint.families",)),
    Rule(
        "programs know a model only by its protocol",
        ("vinfer.compiler",),
        ("vinfer.compiler.easydel", "vinfer.compiler.vision.encoders"),
        but_not=("vinfer.compiler.easydel", "vinfer.compiler.vision", "vinfer.compiler.export"),
    ),
    Rule("image encoders are plain XLA", ("vinfer.compiler.vision",), ("vinfer.compiler.easydel",)),
    Rule(
        "a step's decisions are plain data",
        ("vinfer.engine.schedule",),
        ("vinfer.engine.scheduler", "vinfer.engine.runner", "vinfer.engine.engine"),
    ),
    Rule(
        "only commands put rooms together",
        ("vinfer",),
        ("vinfer.launch",),
        but_not=(*COMMANDS, *LAUNCH, *LIBRARY),
    ),
    Rule(
        "no room knows `vinfer.load`",
        (*RUN_ROOMS, *BUILD_ROOMS, *SHARED, *PARITY, *LAUNCH, *CLIENTS, *COMMANDS),
        LIBRARY,
    ),
    Rule("data that runs code when it is read", ("vinfer",), PICKLES),
)

LOADS = (
    Rule(
        "`vinfer --help` answers at once",
        COMMANDS,
        (*JAX, *EASYDEL, "transformers", "torch", "numpy", "starlette", "uvicorn"),
    ),
    Rule("plain Python loads no JAX, by no detour", WITHOUT_JAX, JAX),
    Rule("accelerators need no LLVM of ours", ("vinfer.engine", "vinfer.launch"), ("llvmlite",)),
    Rule("whoever serves alone loads no ZeroMQ", ("vinfer.launch.loader", "vinfer.server"), ("zmq",)),
    Rule("a server without traces loads none of it", ("vinfer.server.app",), ("opentelemetry",)),
    Rule("a serving process has no build half in it", RUN_ROOMS, BUILD_ONLY),
    Rule(
        "torch and JAX stay out of each other's process",
        (*PARITY, *LAUNCH, *LIBRARY),
        ("torch", "transformers", *JAX),
    ),
)


@dataclasses.dataclass(frozen=True)
class Import:
    """`names`: every module that the statement may name; `from a import b` may name `a.b` as well as `a`."""

    names: tuple[str, ...]
    line: int
    at_load: bool


def under(module: str, prefixes: tuple[str, ...]) -> bool:
    """Return whether `module` is one of `prefixes` or inside one."""
    return module in prefixes or module.startswith(tuple(prefix + "." for prefix in prefixes))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


@functools.cache
def parse(source: str) -> ast.Module:
    """The tree of a source, which every check looks at."""
    return ast.parse(source)


@functools.cache
def imports(module: str, source: str, *, is_package: bool = False) -> tuple[Import, ...]:
    """Every import of a source, `importlib.import_module("x")` and `__import__("x")` included."""

    def visit(node: ast.AST, at_load: bool) -> Iterator[Import]:
        match node:
            case ast.Import():
                for alias in node.names:
                    yield Import((alias.name,), node.lineno, at_load)
            case ast.ImportFrom():
                base = node.module or ""
                if node.level:
                    parents = module.split(".")[
                        : None if is_package and node.level == 1 else -node.level + is_package
                    ]
                    base = ".".join([*parents, *filter(None, [base])])
                for alias in node.names:
                    yield Import((base, f"{base}.{alias.name}"), node.lineno, at_load)
            case ast.Call(args=[ast.Constant(value=str(name)), *_]):
                if ast.unparse(node.func).split(".")[-1] in {"import_module", "__import__"}:
                    yield Import((name,), node.lineno, at_load)
            case _:
                pass
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            at_load = False
        for child in ast.iter_child_nodes(node):
            typing_only = is_type_checking(node) and child in getattr(node, "body", ())
            yield from visit(child, at_load and not typing_only)

    return tuple(visit(parse(source), True))


def parents_of(module: str) -> list[str]:
    return [module.rsplit(".", n)[0] for n in range(1, module.count(".") + 1)]


@functools.cache
def loads(module: str, source: str, *, is_package: bool) -> tuple[str, ...]:
    """Every name that importing a source imports at once, its own packages first."""
    names = [name for name in parents_of(module) if name != "vinfer"]
    statements = imports(module, source, is_package=is_package)
    names += [name for statement in statements if statement.at_load for name in statement.names]
    return tuple(dict.fromkeys(names))


def loaded_by(module: str, modules: Mapping[str, str], packages: frozenset[str]) -> dict[str, str]:
    """What importing `module` imports at once -> the chain of vinfer modules that leads there."""
    chains = {module: module}
    queue = [module]
    while queue:
        current = queue.pop(0)
        for name in loads(current, modules[current], is_package=current in packages):
            if name not in chains:
                chains[name] = f"{chains[current]} -> {name}"
                if name in modules:
                    queue.append(name)
    return chains


def check_imports(modules: Mapping[str, str]) -> Iterator[str]:
    packages = frozenset(parent for name in modules for parent in parents_of(name))
    for module, source in modules.items():
        found = imports(module, source, is_package=module in packages)
        for rule in DIRECTIONS:
            if under(module, rule.inside) and not under(module, rule.but_not):
                for statement in found:
                    if hits := [name for name in statement.names if under(name, rule.banned)]:
                        yield f"{module}:{statement.line} imports {hits[0]}: {rule.why}"
        rules = [rule for rule in LOADS if under(module, rule.inside)]
        chains = loaded_by(module, modules, packages) if rules else {}
        for rule in rules:
            for name, chain in chains.items():
                if under(name, rule.banned):
                    yield f"{module} loads {name}: {rule.why} ({chain})"


def package_of(module: str, packages: frozenset[str]) -> str:
    """Return the package that a module belongs to; a module beside packages stands alone."""
    parent = module.rsplit(".", 1)[0]
    has_packages = any(name.startswith(parent + ".") for name in packages)
    return module if module in packages or has_packages or parent not in packages else parent


def check_cycles(modules: Mapping[str, str]) -> Iterator[str]:
    """Packages that import each other, by whatever way: then neither can be understood first."""
    packages = frozenset(name.rsplit(".", 1)[0] for name in modules if "." in name) & modules.keys()
    imported: dict[str, set[str]] = {}
    for module, source in modules.items():
        here = package_of(module, packages)
        for statement in imports(module, source, is_package=module in packages):
            named = [name for name in statement.names if name in modules]
            # `from a import b` names the module a.b where there is one, else something in a.
            there = {package_of(name, packages) for name in named[-1:]}
            imported.setdefault(here, set()).update(there - {here})
    for start in sorted(imported):
        # The shortest way back; each cycle is told once, from its first name.
        ways = [[start, name] for name in sorted(imported[start])]
        seen = {start}
        while ways:
            way = ways.pop(0)
            if way[-1] == start:
                if start == min(way):
                    yield f"a cycle of packages: {' -> '.join(way)}"
                break
            if way[-1] not in seen:
                seen.add(way[-1])
                ways += [[*way, name] for name in sorted(imported.get(way[-1], ()))]


def check_calls(modules: Mapping[str, str]) -> Iterator[str]:
    """Text that becomes code, and NumPy's own door to pickle."""
    for module, source in modules.items():
        for node in ast.walk(parse(source)):
            if not isinstance(node, ast.Call):
                continue
            if isinstance(node.func, ast.Name) and node.func.id in {"eval", "exec", "compile"}:
                yield f"{module}:{node.lineno} calls {node.func.id}()"
            if any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords):
                yield f"{module}:{node.lineno} allows pickle"


def check_form(modules: Mapping[str, str]) -> Iterator[str]:
    """A name that says something, a docstring, and annotations that are never evaluated."""
    for module, source in modules.items():
        tree = parse(source)
        if VAGUE_NAMES & set(module.split(".")):
            yield f"{module}: name it after what it owns"
        if not ast.get_docstring(tree):
            yield f"{module}: no docstring"
        has_code = any(
            isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) for n in tree.body
        )
        if has_code and "from __future__ import annotations" not in map(ast.unparse, tree.body):
            yield f"{module}: no `from __future__ import annotations`"


def check(modules: Mapping[str, str]) -> list[str]:
    """Complaints about a package given as module name -> source text; empty where all is well."""
    return [*check_imports(modules), *check_cycles(modules), *check_calls(modules), *check_form(modules)]


def read_package() -> dict[str, str]:
    modules = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return modules


def test_the_package_keeps_its_rules() -> None:
    assert check(read_package()) == []


def test_every_room_is_in_some_rule() -> None:
    rooms = {".".join(module.split(".")[:2]) for module in read_package()} - {"vinfer"}
    groups = (RUN_ROOMS, BUILD_ROOMS, KERNELS, PARITY, SHARED, COMMANDS, LAUNCH, LIBRARY, CLIENTS)
    assert rooms <= {room for group in groups for room in group}


def test_every_direction_has_a_negative_control() -> None:
    """A rule without a source that breaks it may never fire."""
    [controls] = [mark for mark in test_a_broken_rule_is_named.pytestmark if mark.name == "parametrize"]
    shown = [check({module: FUTURE + source}) for module, source, _ in controls.args[1]]
    whys = {rule.why for rule in (*DIRECTIONS, *LOADS)}
    broken = {why for why in whys if any(why in found for complaints in shown for found in complaints)}
    assert whys - broken == set()


def test_rules_name_modules_that_exist() -> None:
    named = {
        name
        for rule in (*DIRECTIONS, *LOADS)
        for name in (*rule.inside, *rule.but_not)
        if "__main__" not in name
    }
    modules = read_package()
    missing = {name for name in named if not any(under(module, (name,)) for module in modules)}
    assert missing == set(), "a rule over a module that is gone holds nothing: rename it here too"


FUTURE = '"""Doc."""\nfrom __future__ import annotations\n'


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        (
            "vinfer.engine.runner",
            "import vinfer.compiler.export.bundle",
            "imports vinfer.compiler.export.bundle",
        ),
        ("vinfer.engine.runner", "from vinfer import checkpoint", "imports vinfer.checkpoint"),
        ("vinfer.engine.runner", "from ..checkpoint import source", "imports vinfer.checkpoint"),
        (
            "vinfer.text.tokenizer",
            "def f():\n    from transformers import AutoTokenizer",
            "imports transformers",
        ),
        ("vinfer.server.app", "if TYPE_CHECKING:\n    import torch", "imports torch"),
        ("vinfer.server.app", "importlib.import_module('easydel.modules')", "imports easydel.modules"),
        ("vinfer.server.app", "__import__('easydel')", "imports easydel"),
        ("vinfer.bundle", "from vinfer.engine.request import Request", "imports vinfer.engine.request"),
        ("vinfer.errors", "import vinfer.compiler", "imports vinfer.compiler"),
        ("vinfer.server.metrics", "import jax.monitoring", "imports jax.monitoring"),
        ("vinfer.engine.scheduler", "import jax", "plain Python, so that"),
        ("vinfer.engine.request", "import jax", "plain Python, so that"),
        ("vinfer.engine.scheduler", "import llguidance", "one module knows llguidance"),
        ("vinfer.server.services", "from opentelemetry import trace", "one module knows OpenTelemetry"),
        ("vinfer.hosts.leader", "import jax", "plain Python, so that"),
        ("vinfer.hosts.record", "import zmq", "one module knows ZeroMQ"),
        ("vinfer.compiler.plan", "import llvmlite.binding", "one room knows LLVM"),
        ("vinfer.cpu_kernel.calls", "import vinfer.bundle.manifest", "a kernel knows no model"),
        ("vinfer.engine.loading.load", "import llvmlite", "accelerators need no LLVM of ours"),
        ("vinfer.engine.loading.loaded_model", "from vinfer.hosts import record", "serves without a group"),
        ("vinfer.hosts.follower", "from vinfer.engine.engine import Engine", "know no request"),
        ("vinfer.server.app", "import zmq", "whoever serves alone"),
        ("vinfer.engine.engine", "from jax import numpy as jnp", "plain Python, so that"),
        ("vinfer.engine.prefix_cache", "def f():\n    import jax", "plain Python, so that"),
        ("vinfer.config.load", "def f():\n    import jax", "plain Python, so that"),
        ("vinfer.bundle", "import jaxlib", "plain Python, so that"),
        ("vinfer.text.stops", "import jax", "plain Python, so that"),
        ("vinfer.compiler.export.bundle", "from flax import nnx", "one adapter knows EasyDeL"),
        ("vinfer.compiler.sampler", "import ejkernel.types", "one adapter knows EasyDeL"),
        ("vinfer.cli", "def f():\n    import eformer", "one adapter knows EasyDeL"),
        ("vinfer.checkpoint.gguf", "import jax.numpy", "without a framework"),
        ("vinfer.checkpoint.gguf", "import torch", "without a framework"),
        ("vinfer.compiler.export.bundle", "import huggingface_hub", "where weights come from"),
        ("vinfer.cli", "def f():\n    from gguf import GGUFReader", "where weights come from"),
        ("vinfer.engine.engine", "import vinfer.server.generate.sse", "never sees HTTP"),
        ("vinfer.text.tokenizer", "from vinfer.engine.request import Request", "never sees the engine"),
        ("vinfer.images.decode", "from vinfer.server import fields", "images never see"),
        ("vinfer.images.decode", "import jax", "plain Python, so that"),
        ("vinfer.images.source", "import urllib.request", "one function fetches"),
        ("vinfer.server.routes.chat", "import httpx", "one function fetches"),
        ("vinfer.chat.session", "import httpx", "one function fetches"),
        ("vinfer.chat.client", "import vinfer.server.fields.chat", "by its API"),
        ("vinfer.bench.run", "import jax", "by its API"),
        ("vinfer.server.routes.chat", "from PIL import Image", "one file opens images"),
        ("vinfer.compiler.programs", "import vinfer.images", "without the run half"),
        ("vinfer.compiler.programs", "import vinfer.server", "without the run half"),
        ("vinfer.checkpoint.source", "from vinfer.engine import request", "without the run half"),
        ("vinfer.checkpoint.source", "from vinfer.compiler import export", "what is made of it"),
        ("vinfer.parity.measure", "def f():\n    import torch", "one child process knows transformers"),
        ("vinfer.compiler.export.bundle", "import transformers", "one child process knows transformers"),
        ("vinfer.engine.engine", "from vinfer.parity import figures", "does not know its judge"),
        ("vinfer.checkpoint.source", "import vinfer.parity.prompts", "does not know its judge"),
        ("vinfer.parity.measure", "from vinfer.engine import runner", "the judge sees"),
        ("vinfer.parity.figures", "import jax.numpy", "the judge sees"),
        ("vinfer.parity.reference", "import torch", "out of each other's process"),
        ("vinfer.launch.parity", "import jax", "out of each other's process"),
        ("vinfer.server.app", "from vinfer.cli import main", "commands are the top"),
        ("vinfer.server.app", "import vinfer.launch.loader", "only commands put rooms together"),
        ("vinfer.launch.loader", "import vinfer.llm.host", "no room knows"),
        ("vinfer.launch.loader", "from vinfer.server.app import create_app", "only commands build the app"),
        ("vinfer.server.http.gate", "from vinfer.server.routes import chat", "knows no route"),
        ("vinfer.server.http.body", "import vinfer.server.fields.chat", "knows no route"),
        (
            "vinfer.server.fields.chat",
            "from vinfer.server.constrain import grammars",
            "before anything is done",
        ),
        ("vinfer.server.constrain.grammars", "import vinfer.server.generate.prompts", "for any route"),
        ("vinfer.server.generate.sse", "from vinfer.server.routes import chat", "generated for any route"),
        ("vinfer.server.routes.chat", "import vinfer.server.document.openapi", "do not describe themselves"),
        ("vinfer.server.document.openapi", "import vinfer.server.routes.chat", "not from handlers"),
        ("vinfer.server.answers.bodies", "import vinfer.server.generate.answer", "knows no writer"),
        ("vinfer.checkpoint.gguf.config", "import vinfer.checkpoint.checkpoint", "do not know the whole"),
        ("vinfer.checkpoint.families.llama", "from vinfer.checkpoint.gguf import names", "in every format"),
        ("vinfer.checkpoint.rope.config", "import vinfer.checkpoint.families.olmo", "knows no family"),
        ("vinfer.compiler.programs", "from vinfer.compiler.easydel import model", "only by its protocol"),
        ("vinfer.compiler.vision.tower", "import vinfer.compiler.easydel.model", "plain XLA"),
        ("vinfer.engine.schedule", "from vinfer.engine import runner", "plain data"),
        ("vinfer.compiler.export.bundle", "import pickle", "runs code when it is read"),
        ("vinfer.checkpoint.source", "def f():\n    from marshal import loads", "runs code when it is read"),
        ("vinfer.cli", "import numpy", "answers at once"),
        ("vinfer.server.app", "import opentelemetry.trace", "a server without traces loads none of it"),
        ("vinfer.cli", "try:\n    import uvicorn\nfinally:\n    pass", "answers at once"),
        ("vinfer.engine.grammar", "x = eval('1')", "calls eval()"),
        ("vinfer.engine.grammar", "exec('1')", "calls exec()"),
        ("vinfer.checkpoint.tensors", "np.load(path, allow_pickle=True)", "allows pickle"),
        ("vinfer.server.utils", "", "name it after what it owns"),
        ("vinfer.helpers.text", "", "name it after what it owns"),
        ("vinfer.engine.manager", "", "name it after what it owns"),
    ],
)
def test_a_broken_rule_is_named(module: str, source: str, complaint: str) -> None:
    assert any(complaint in found for found in check({module: FUTURE + source}))


def test_a_detour_to_jax_is_found() -> None:
    modules = {
        "vinfer.server.app": FUTURE + "from vinfer.engine.engine import Engine",
        "vinfer.engine.engine": FUTURE + "from vinfer.engine import runner",
        "vinfer.engine.runner": FUTURE + "import jax",
    }
    chain = "vinfer.server.app -> vinfer.engine.engine -> vinfer.engine.runner -> jax"
    assert [found for found in check(modules) if chain in found]


@pytest.mark.parametrize("back", ["from vinfer.text.a import x", "def f():\n    import vinfer.text.a"])
def test_a_cycle_of_packages_is_found(back: str) -> None:
    modules = {
        "vinfer": "",
        "vinfer.text": "",
        "vinfer.text.a": "from vinfer.images import b",
        "vinfer.images": "",
        "vinfer.images.b": "import vinfer.config.c",
        "vinfer.config": "",
        "vinfer.config.c": back,
    }
    assert list(check_cycles(modules)) == [
        "a cycle of packages: vinfer.config -> vinfer.text -> vinfer.images -> vinfer.config"
    ]
    assert list(check_cycles({**modules, "vinfer.config.c": ""})) == []


def test_modules_beside_packages_stand_alone() -> None:
    """The front of a package may put its rooms together while these use what lies beside it."""
    modules = {
        "vinfer": "",
        "vinfer.server": "",
        "vinfer.server.app": "from vinfer.server.routes import chat",
        "vinfer.server.services": "",
        "vinfer.server.routes": "",
        "vinfer.server.routes.chat": "from vinfer.server.services import Services",
    }
    assert list(check_cycles(modules)) == []
    modules["vinfer.server.services"] = "from vinfer.server import app"
    assert list(check_cycles(modules)) == [
        (
            "a cycle of packages: vinfer.server.app -> vinfer.server.routes -> vinfer.server.services"
            " -> vinfer.server.app"
        )
    ]


def test_a_package_runs_its_init_before_its_modules() -> None:
    modules = {
        "vinfer.engine": FUTURE + "from vinfer.engine.runner import Runner",
        "vinfer.engine.runner": FUTURE + "import jax",
        "vinfer.engine.scheduler": FUTURE,
    }
    assert any(found.startswith("vinfer.engine.scheduler loads jax") for found in check(modules))


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("x = 1", "no docstring"),
        ('"""Doc."""\nimport os\ndef f() -> None: ...', "no `from __future__ import annotations`"),
        ('"""Doc."""\nclass A: ...', "no `from __future__ import annotations`"),
    ],
)
def test_a_file_out_of_form_is_named(source: str, complaint: str) -> None:
    assert any(complaint in found for found in check({"vinfer.text.stops": source}))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vinfer.compiler.easydel.model", "import easydel\nfrom flax import nnx"),
        ("vinfer.compiler.easydel.corrections", "def f():\n    import ejkernel"),
        ("vinfer.compiler.export.bundle", "import jax\nfrom vinfer.bundle.manifest import MAX_LOGIT_BIAS"),
        ("vinfer.checkpoint.gguf", "import numpy\nfrom gguf import GGUFReader"),
        ("vinfer.checkpoint.source", "def f():\n    import huggingface_hub"),
        ("vinfer.parity.reference", "def f():\n    import torch, transformers"),
        ("vinfer.parity.measure", "from vinfer.engine.request import EngineClient"),
        ("vinfer.cli", "def serve():\n    import jax, uvicorn\n    from vinfer.compiler import export"),
        ("vinfer.cli", "import typing\nif typing.TYPE_CHECKING:\n    import jax"),
        ("vinfer.__main__", "from vinfer.cli import main"),
        ("vinfer.engine.runner", "import jax\nimport jax_like\nfrom vinfer.bundle.manifest import Manifest"),
        ("vinfer.server.app", "import starlette\nfrom vinfer.engine.request import Request"),
        ("vinfer.checkpoint.tensors", "np.load(path, allow_pickle=False)\nre.compile('x')\nself.exec('x')"),
    ],
)
def test_what_the_rules_allow_passes(module: str, source: str) -> None:
    assert check({module: FUTURE + source}) == []
