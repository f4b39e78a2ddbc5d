"""Loading a config from a file, the environment and overrides, and the errors on the way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pydantic
import pytest

from vinfer.config import Config, MeshConfig, SamplingConfig, load_config
from vinfer.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"
MINIMAL = "models: [{name: m, source: org/m}]\n"

# The example config of the design, verbatim.
FIRST_SCREEN = """\
server: {host: 127.0.0.1, port: 8000, api_keys_file: null}
models:
  - name: llama
    source: meta-llama/Llama-3.2-1B-Instruct
    task: text
    dtype: bfloat16
    mesh: {dp: 1, fsdp: 1, ep: 1, tp: -1, sp: 1}
    max_model_len: 4096
    num_slots: 16
    streaming_chunks: 8
    precompile:
      - {batch_size: 1, prefill_length: [128, 512, 2048]}
      - {batch_size: 1, prefill_length: 1024, vision: {batch_size: 1, channels: 3, height: 336, width: 336}}
    sampling: {temperature: 0.7, top_p: 0.95, top_k: 50, repetition_penalty: 1.0,
               presence_penalty: 0.0, frequency_penalty: 0.0, max_tokens: 512}
"""


@pytest.fixture
def yaml_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path for the file under test; errors name it `x.yaml` because it is in the working directory."""
    monkeypatch.chdir(tmp_path)
    return Path("x.yaml")


def load(path: Path, text: str, *overrides: str, **environ: str) -> Config:
    path.write_text(text, encoding="utf-8")
    return load_config(path, overrides=overrides, environ={"HOME": "/home/me", **environ})


def problems(path: Path, text: str, *overrides: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, text, *overrides, **environ)
    return caught.value.message.splitlines()


def test_the_first_screen_of_the_design(yaml_file: Path) -> None:
    config = load(yaml_file, FIRST_SCREEN)
    (model,) = config.models
    assert (config.server.host, config.server.port, config.server.api_keys_file) == ("127.0.0.1", 8000, None)
    assert (model.source, model.dtype, model.mesh) == (
        "meta-llama/Llama-3.2-1B-Instruct",
        "bfloat16",
        MeshConfig(tp=-1),
    )
    assert [entry.prefill_length for entry in model.precompile] == [(128, 512, 2048), (1024,)]
    assert model.sampling == SamplingConfig(
        temperature=0.7,
        top_p=0.95,
        top_k=50,
        repetition_penalty=1.0,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        max_tokens=512,
    )


def test_defaults_bind_loopback_and_limit_every_queue(yaml_file: Path) -> None:
    config = load(yaml_file, MINIMAL)
    server, (model,) = config.server, config.models
    assert (server.host, server.port, server.metrics, server.unknown_fields) == (
        "127.0.0.1",
        8000,
        True,
        "refuse",
    )
    assert (server.max_body_bytes, server.max_n) == (4 * 1024 * 1024, 8)
    assert (server.drain_timeout_seconds, server.request_timeout_seconds) == (30, 600)
    assert server.header_timeout_seconds == 10
    assert model.mesh.model_dump() == {"dp": 1, "fsdp": 1, "ep": 1, "tp": -1, "sp": 1}
    assert set(model.sampling.model_dump().values()) == {None}
    assert set(model.kv_cache.model_dump().values()) == {None}
    assert (model.max_model_len, model.num_slots, model.prefix_cache) == (None, 64, "per_key")


def test_config_is_frozen(yaml_file: Path) -> None:
    config = load(yaml_file, MINIMAL)
    with pytest.raises(pydantic.ValidationError):
        config.server.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("environ", "cache_dir"),
    [
        ({}, "/home/me/.cache/vinfer"),
        ({"XDG_CACHE_HOME": "/cache"}, "/cache/vinfer"),
        ({"XDG_CACHE_HOME": "relative/is/ignored"}, "/home/me/.cache/vinfer"),
        ({"XDG_CACHE_HOME": "/cache", "VINFER_CACHE_DIR": "/mine"}, "/mine"),
    ],
)
def test_cache_dir(yaml_file: Path, environ: dict[str, str], cache_dir: str) -> None:
    config = load(yaml_file, MINIMAL, **environ)
    assert config.cache_dir == Path(cache_dir)
    assert config.bundles_dir == Path(cache_dir) / "bundles"


def test_precedence_is_default_file_environment_override(yaml_file: Path) -> None:
    text = "server: {port: 1, max_n: 1, max_workers: 1}\n" + MINIMAL
    config = load(
        yaml_file,
        text,
        "server.port=3",
        "server.max_n=4",
        "server.max_n=5",
        VINFER_SERVER__PORT="2",
        VINFER_SERVER__MAX_WORKERS="2",
        VINFER_LOG_LEVEL="debug",
    )
    assert (config.server.port, config.server.max_n, config.server.max_workers) == (3, 5, 2)
    assert config.server.host == "127.0.0.1"
    assert config.log_level == "debug"


@pytest.mark.parametrize(
    ("key", "value"), [("cache_dir", "/tmp"), ("log_level", "debug"), ("log_format", "json")]
)
def test_every_value_of_the_top_level_has_a_variable(yaml_file: Path, key: str, value: str) -> None:
    config = load(yaml_file, MINIMAL, **{f"VINFER_{key.upper()}": value})
    assert str(getattr(config, key)) == value


def test_environment_and_overrides_reach_into_lists_and_new_blocks(yaml_file: Path) -> None:
    config = load(
        yaml_file,
        "server:\n" + MINIMAL,
        "models[0].mesh.tp=2",
        "models.0.precompile=[{prefill_length: [32, 64]}]",
        "models[1].name=other",
        "models[1].source=package:p/m.gguf",
        VINFER_MODELS__0__NUM_SLOTS="8",
        VINFER_MODELS__0__SAMPLING__TOP_P="5e-1",
        VINFER_SERVER__UNKNOWN_FIELDS="ignore",
    )
    first, second = config.models
    assert (first.mesh.tp, first.num_slots, first.sampling.top_p) == (2, 8, 0.5)
    assert first.precompile[0].prefill_length == (32, 64)
    assert (second.name, second.source) == ("other", "package:p/m.gguf")
    assert config.server.unknown_fields == "ignore"


def test_other_variables_are_not_ours(yaml_file: Path) -> None:
    load(yaml_file, MINIMAL, VINFER_XLA_CACHE="/x", VINFER_SERVER_PORT="tcp://1.2.3.4:5", OTHER__X="1")


def test_local_paths_are_relative_to_where_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for directory in (tmp_path / "deploy/local/model", tmp_path / "work"):
        directory.mkdir(parents=True)
    path = tmp_path / "deploy/x.yaml"
    path.write_text(
        "server: {api_keys_file: keys, distributed: {secret_file: secret}}\ncache_dir: cache\nmodels:\n"
        + "".join(
            f"  - {{name: m{i}, source: {source}}}\n"
            for i, source in enumerate(
                [
                    "local/model",
                    "org/model",
                    "./nowhere",
                    "a.gguf",
                    "a/b/c",
                    "/abs",
                    "package:p/x.gguf",
                    "gpt2",
                    "x",
                ]
            )
        )
    )
    monkeypatch.chdir(tmp_path / "work")
    config = load_config(path, overrides=["models[8].source=../there"], environ={})
    deploy = f"{tmp_path}/deploy"
    assert config.server.api_keys_file == Path(deploy, "keys")
    assert config.server.distributed.secret_file == Path(deploy, "secret")
    assert config.cache_dir == Path(deploy, "cache")
    assert [model.source for model in config.models] == [
        f"{deploy}/local/model",
        "org/model",
        f"{deploy}/nowhere",
        f"{deploy}/a.gguf",
        f"{deploy}/a/b/c",
        "/abs",
        "package:p/x.gguf",
        "gpt2",
        f"{tmp_path}/there",
    ]


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ("num_slots: 6, mesh: {dp: 4}", "num_slots is 6; mesh.dp is 4 and must divide it: use 4 or 8"),
        ("num_slots: 3, mesh: {dp: 4}", "num_slots is 3; mesh.dp is 4 and must divide it: use 4"),
        ("mesh: {dp: 5}", "num_slots is 64; mesh.dp is 5 and must divide it: use 60 or 65"),
        ("mesh: {tp: 0}", "mesh.tp is 0; must be at least 1, or -1 for all remaining devices"),
        ("mesh: {tp: -2}", "mesh.tp is -2; must be at least -1"),
        ("mesh: {dp: -1}", "mesh.dp is -1; must be at least 1"),
        (
            "max_model_len: 2048, precompile: [{prefill_length: [64, 4096]}]",
            "precompile[0].prefill_length[1] is 4096; max_model_len is 2048: lower it or raise max_model_len",
        ),
        (
            "num_slots: 2, precompile: [{batch_size: 4}]",
            "precompile[0].batch_size is 4; num_slots is 2: lower it or raise num_slots",
        ),
        ("precompile: [{batch_size: true}]", "precompile[0].batch_size is true; expected an integer"),
        ("precompile: []", "precompile is empty: fill it in or leave it out"),
        ("mesh:", "mesh is empty; expected a block of keys: fill it in or leave it out"),
        (
            "kv_cache: {bytes: 4, pages: 2}",
            "kv_cache.pages is set, and so is bytes: keep one of them",
        ),
        (
            "kv_cache: {bytes: null, memory_fraction: 0.5, pages: 2}",
            "kv_cache.memory_fraction is set, and so is pages: keep one of them",
        ),
        ("kv_cache: {pages: 0}", "kv_cache.pages is 0; must be at least 1"),
        ("kv_cache: {bytes: 4.5}", "kv_cache.bytes is 4.5; expected an integer"),
        ("kv_cache: {memory_fraction: 0}", "kv_cache.memory_fraction is 0; must be more than 0"),
        ("kv_cache: {memory_fraction: 90}", "kv_cache.memory_fraction is 90; must be at most 1"),
        ("kv_cache: 4", "kv_cache is 4; expected a block of keys"),
        ("prefix_cache: true", "prefix_cache is true; allowed values: per_key, shared, off"),
        ("dtype: fp16", "dtype is 'fp16'; allowed values: float32, bfloat16, float16; did you mean float16?"),
        ("task: audio", "task is 'audio'; allowed values: text, image-text"),
        ("sampling: {temperature: -1}", "sampling.temperature is -1; must be at least 0"),
        ("sampling: {temperature: .nan}", "sampling.temperature is nan; must be a finite number"),
        ("sampling: {top_p: -0.1}", "sampling.top_p is -0.1; must be at least 0"),
        ("sampling: {top_k: -2}", "sampling.top_k is -2; must be at least -1"),
        ("sampling: {n: 9}", "sampling.n is 9; server.max_n is 8: lower it or raise server.max_n"),
        ("revision: 123", "revision is 123; expected text: put it in quotes"),
        ("max_queue: '64'", "max_queue is '64'; expected an integer"),
        (
            "chat_template_kwargs: {thinking: bool}",
            "chat_template_kwargs.thinking is 'bool'; allowed values: boolean, integer, number, string",
        ),
        (
            "chat_template_kwargs: {tools: string}",
            "chat_template_kwargs has tools, which no request may set: remove it",
        ),
        (
            "chat_template_kwargs: {bos_token: string}",
            "chat_template_kwargs has bos_token, which no request may set: remove it",
        ),
        (
            "chat_template_kwargs: {a-b: string}",
            "chat_template_kwargs has 'a-b'; names must be letters, digits and _",
        ),
        ("num_slot: 4", "num_slot is not a known key: did you mean num_slots?"),
        ("max-queue: 4", "max-queue is not a known key: did you mean max_queue?"),
        ("port: 4", "port is not a known key: did you mean server.port?"),
        ("top_p: 1", "top_p is not a known key: did you mean models[0].sampling.top_p?"),
        ("max_new_tokens: 1", "max_new_tokens is not a known key: it is models[0].sampling.max_tokens here"),
        (
            '"a\\nb": 1',
            "'a\\nb' is not a known key: known keys here: name, source, revision, task, dtype, mesh, ",
        ),
    ],
)
def test_a_bad_model_field_says_key_value_limit_and_next_move(
    yaml_file: Path, model: str, problem: str
) -> None:
    (line,) = problems(yaml_file, f"models: [{{name: m, source: org/m, {model}}}]\n")
    place, _, text = line.partition(": ")
    assert place.startswith("x.yaml:1:")
    assert text.startswith(f"models[0].{problem}")


@pytest.mark.parametrize("size", ["bytes: 1073741824", "pages: 512", "memory_fraction: 0.8"])
def test_the_kv_cache_has_one_size(yaml_file: Path, size: str) -> None:
    (model,) = load(yaml_file, f"models: [{{name: m, source: org/m, kv_cache: {{{size}}}}}]\n").models
    name, _, value = size.partition(": ")
    stated = {key: size for key, size in model.kv_cache.model_dump().items() if size is not None}
    assert stated == {name: pytest.approx(float(value))}


def test_off_is_a_word(yaml_file: Path) -> None:
    """YAML 1.1 would read false."""
    (model,) = load(yaml_file, "models: [{name: m, source: org/m, prefix_cache: off}]\n").models
    assert model.prefix_cache == "off"


def test_revision_is_for_hub_ids(yaml_file: Path) -> None:
    text = "models: [{name: m, source: package:p/m.gguf, revision: main}]"
    assert problems(yaml_file, text) == [
        "x.yaml:1:46: models[0].revision is 'main'; source is package:p/m.gguf, not a hub id: remove revision"
    ]


def test_all_problems_at_once_each_with_its_place(yaml_file: Path) -> None:
    text = """\
server:
  prot: 9000
  num_slots: 4
  port: 1
  port: 2
  unknown_fields: refus
models:
  - source: org/m
    mesh: {dp: 3}
    precompile:
      - batch_size: [1, x]
        vision: {widht: 3, height: 3}
  - {name: m, source: org/m}
log_levle: info
"""
    vision = "models[0].precompile[0].vision"
    assert problems(yaml_file, text, "server.max_n=0", VINFER_SERVR__PORT="1") == [
        "x.yaml:2:3: server.prot is not a known key: did you mean port?",
        "x.yaml:3:3: server.num_slots is not a known key: did you mean models[].num_slots?",
        "x.yaml:5:3: 'port' is given twice; first on line 4: remove one of them",
        "x.yaml:6:3: server.unknown_fields is 'refus'; allowed values: refuse, ignore; did you mean refuse?",
        "x.yaml:8:5: models[0].name is missing: add it under models[0]",
        "x.yaml:8:5: models[0].num_slots is 64; mesh.dp is 3 and must divide it: use 63 or 66",
        "x.yaml:11:25: models[0].precompile[0].batch_size[1] is 'x'; expected an integer",
        f"x.yaml:12:9: {vision}.width is missing: add it under {vision}",
        f"x.yaml:12:18: {vision}.widht is not a known key: did you mean width?",
        "x.yaml:14:1: log_levle is not a known key: did you mean log_level?",
        "VINFER_SERVR__PORT: servr is not a known key: did you mean server?",
        "--set server.max_n: server.max_n is 0; must be at least 1",
    ]


def test_names_are_unique_and_plain(yaml_file: Path) -> None:
    text = "models:\n  - {name: m, source: a/b}\n  - {name: m, source: a/c}\n"
    assert problems(yaml_file, text) == [
        "x.yaml:3:6: models[1].name is 'm', the same as models[0].name: names must be unique"
    ]
    (line,) = problems(yaml_file, text, 'models[1].name="m\\n"')
    assert line.startswith("--set models[1].name: models[1].name is 'm\\n'; must be letters, digits")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "x.yaml:1:1: models is missing: add it under the top level"),
        ("models: []", "x.yaml:1:1: models is empty: fill it in or leave it out"),
        ("models: {name: m}", "x.yaml:1:1: models is a block of keys; expected a list"),
        ("models: [m]", "x.yaml:1:10: models[0] is 'm'; expected a block of keys"),
        ("- a", "x.yaml:1:1: the file is a list; expected keys such as server: and models:"),
        ("a", "x.yaml:1:1: the file is a single value; expected keys such as server: and models:"),
    ],
)
def test_a_file_of_another_shape(yaml_file: Path, text: str, problem: str) -> None:
    assert problems(yaml_file, text) == [problem]


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("port", "--set 'port': expected key=value, such as server.port=9000 or models[0].num_slots=8"),
        ("models[x].name=1", "--set 'models[x].name=1': expected key=value, such as"),
        ("server.port=[1", "--set server.port:1:3: not valid YAML"),
        ("server.port=", "--set server.port: server.port is empty; expected an integer"),
        ("server.port.x=1", "--set server.port.x: server.port is not a list or a block"),
        ("models.name=x", "--set models.name: models is a list: give an index"),
        ("server[0]=x", "--set server[0]: server is a block: give a key"),
        ("models[2].name=x", "--set models[2].name: models has 1 entries; the next index is 1"),
        ("server={port: 1, port: 2}", "--set server: 'port' is given twice"),
        ("server={prt: 1}", "--set server: server.prt is not a known key: did you mean port?"),
    ],
)
def test_bad_overrides_are_named(yaml_file: Path, override: str, problem: str) -> None:
    (line,) = problems(yaml_file, "server: {port: 1}\n" + MINIMAL, override)
    assert line.startswith(problem)


def test_an_override_heals_the_value_it_replaces(yaml_file: Path) -> None:
    text = "server: {port: abc, prot: 1}\n" + MINIMAL
    assert load(yaml_file, text, "server={max_n: 2}").server.max_n == 2


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configs_load_and_open_with_their_command(path: Path) -> None:
    assert load_config(path, environ={}).models
    lines = path.read_text().splitlines()
    opening = "\n".join(lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])
    assert f"vinfer serve configs/{path.name}" in opening
    assert "Hardware: " in opening
    assert "yaml-language-server: $schema=vinfer.schema.json" in opening


def test_loading_a_config_imports_nothing_heavy() -> None:
    code = (
        "import sys; from vinfer.config import load_config; "
        f"load_config({str(CONFIGS / 'smollm2.yaml')!r}, environ={{}}); "
        "print([m for m in ('jax', 'numpy', 'easydel', 'transformers', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_server_of_optional_models_only_is_refused(yaml_file: Path) -> None:
    """It would be ready without serving anything."""
    text = (
        "models:\n  - {name: m, source: a/b, required: false}\n  - {name: n, source: a/c, required: false}\n"
    )
    assert problems(yaml_file, text) == [
        "x.yaml:1:1: models has no required model: leave out required: false for one of them"
    ]
