"""Hugging Face directories: every tensor, every fact besides the weights, and every refusal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from vinfer.checkpoint.checkpoint import Checkpoint, num_parameters, open_checkpoint
from vinfer.checkpoint.source import resolve_source
from vinfer.errors import CheckpointError

Write = Callable[..., Path]
Tiny = Callable[..., Any]


def _open(directory: Path) -> Checkpoint:
    return open_checkpoint(resolve_source(str(directory)))


def _edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


@pytest.mark.parametrize("num_shards", [0, 1, 3])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_every_tensor_is_read_as_stored(
    hf_directory: Write, tiny: Tiny, model_type: str, num_shards: int
) -> None:
    checkpoint = _open(hf_directory(model_type, num_shards))
    tensors = tiny(model_type).tensors
    assert checkpoint.model_type == model_type
    assert sorted(checkpoint.tensor_names()) == sorted(tensors)
    for name, tensor in tensors.items():
        assert checkpoint.tensor_shape(name) == tensor.shape
        np.testing.assert_array_equal(checkpoint.read(name), tensor)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_stays_as_it_is(hf_directory: Write, tiny: Tiny, dtype: Any) -> None:
    directory = hf_directory()
    tensors = {name: tensor.astype(dtype) for name, tensor in tiny("llama").tensors.items()}
    save_file(tensors, directory / "model.safetensors")
    array = _open(directory).read("model.norm.weight")
    assert array.dtype == dtype
    np.testing.assert_array_equal(array, tensors["model.norm.weight"])


def test_description_counts_every_parameter_once(hf_directory: Write, tiny: Tiny) -> None:
    checkpoint = _open(hf_directory(tie_word_embeddings=True))
    tied = tiny("llama", tie_word_embeddings=True).tensors
    assert num_parameters(checkpoint) == sum(tensor.size for tensor in tied.values())
    facts = checkpoint.facts
    assert (facts.num_layers, facts.num_attention_heads, facts.num_kv_heads) == (2, 4, 2)
    assert (facts.key_dim, facts.value_dim, facts.hidden_size, facts.vocab_size) == (8, 8, 32, 260)


def test_a_tied_head_that_is_stored_too_is_not_listed(hf_directory: Write, tiny: Tiny) -> None:
    directory = hf_directory(tie_word_embeddings=True)
    tensors = tiny("llama", tie_word_embeddings=True).tensors
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    save_file(tensors, directory / "model.safetensors")
    assert "lm_head.weight" not in _open(directory).tensor_names()
    tensors["lm_head.weight"][259, 31] += 1
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"ties the embeddings, but lm_head.weight differs"):
        _open(directory)


def test_rotary_buffers_of_old_checkpoints_are_ignored(hf_directory: Write, tiny: Tiny) -> None:
    directory = hf_directory()
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    save_file(tiny("llama").tensors | buffer, directory / "model.safetensors")
    assert sorted(_open(directory).tensor_names()) == sorted(tiny("llama").tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), "lacks 1 of 21 tensors, first model.norm.weight"),
        (
            lambda t: t.update({"model.norm.weight": np.ones(31, np.float32)}),
            r"shape \[31\].*requires \[32\]",
        ),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.ones(32, np.float32)}),
            "does not use, first model.layers.0.self_attn.q_proj.bias",
        ),
        (lambda t: t.update({"model.norm.weight": np.ones(32, np.int8)}), "stored as I8"),
    ],
)
def test_weights_that_do_not_fit_the_config_are_refused(
    hf_directory: Write, tiny: Tiny, change: Callable[[dict[str, np.ndarray]], object], message: str
) -> None:
    directory = hf_directory()
    tensors = tiny("llama").tensors
    change(tensors)
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        _open(directory)


def _cut(path: Path, num_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:num_bytes])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda d: (d / "model-00002-of-00003.safetensors").unlink(),
            "00002-of-00003.safetensors does not exist",
        ),
        (lambda d: _cut(d / "model-00002-of-00003.safetensors", 4000), "truncated or not a safetensors"),
        (lambda d: _cut(d / "model-00002-of-00003.safetensors", 0), "truncated or not a safetensors"),
        (lambda d: (d / "model.safetensors.index.json").write_text("{}"), "no weight_map"),
        (
            lambda d: (d / "model.safetensors.index.json").write_text(
                '{"weight_map": {"model.norm.weight": "../model.safetensors"}}'
            ),
            "not a plain file name",
        ),
        (
            lambda d: (d / "model.safetensors.index.json").write_text(
                '{"weight_map": {"ghost": "model-00001-of-00003.safetensors"}}'
            ),
            "lacks ghost",
        ),
        (lambda d: (d / "model.safetensors.index.json").unlink(), "neither model.safetensors nor"),
        (
            lambda d: (d / "model.safetensors.index.json").write_text(
                '{"weight_map": {"model.norm.weight": "' + "a" * 300 + '"}}'
            ),
            "File name too long",
        ),
        (lambda d: (d / "config.json").write_text("{"), "config.json is not valid JSON"),
        (
            lambda d: (d / "tokenizer_config.json").write_text('{"eos_token": "\\ud800"}'),
            "tokenizer_config.json is not valid JSON .*surrogates not allowed",
        ),
        (lambda d: (d / "config.json").write_bytes(b"\xff"), "config.json is not UTF-8"),
        (lambda d: (d / "config.json").write_text("[1]"), "not a JSON object"),
        (lambda d: (d / "config.json").write_bytes(b" " * (16 * 2**20 + 1)), "limit 16777216"),
        (lambda d: (d / "tokenizer.json").write_text("{}"), "tokenizer.json does not load"),
        (lambda d: (d / "tokenizer.json").unlink(), r"no tokenizer.json \(found: none\).*save_pretrained"),
        (
            lambda d: (d / "tokenizer.json").rename(d / "tokenizer.model"),
            "only tokenizer.model, a slow tokenizer, which vinfer does not convert yet",
        ),
    ],
)
def test_a_damaged_directory_says_what_is_wrong(
    hf_directory: Write, damage: Callable[[Path], object], message: str
) -> None:
    directory = hf_directory(num_shards=3)
    damage(directory)
    with pytest.raises(CheckpointError, match=message):
        _open(directory)


@pytest.mark.parametrize(
    ("config_eos", "generation_eos", "tokenizer_eos", "expected"),
    [
        (257, ..., "</s>", (257,)),
        (257, [3, 9], "</s>", (3, 9, 257)),
        ([257, 4], None, None, (4, 257)),
        (None, 5, {"content": "</s>"}, (5, 257)),
        (None, ..., None, ()),
        (-1, ..., None, ()),
    ],
)
def test_end_tokens_are_the_union_of_all_places(
    hf_directory: Write, config_eos: object, generation_eos: object, tokenizer_eos: object, expected: object
) -> None:
    directory = hf_directory(eos_token_id=config_eos)
    _edit(directory / "tokenizer_config.json", eos_token=tokenizer_eos)
    if generation_eos is not ...:
        _edit(directory / "generation_config.json", eos_token_id=generation_eos)
    assert _open(directory).generation.eos_token_ids == expected


def test_sampling_defaults_come_from_generation_config(hf_directory: Write) -> None:
    directory = hf_directory(bos_token_id=1, pad_token_id=7)
    _edit(
        directory / "generation_config.json",
        bos_token_id=256,
        do_sample=True,
        temperature=0.6,
        top_p=0.9,
        top_k=0,
        min_p=0,
        repetition_penalty=1.05,
        max_new_tokens=99,
    )
    generation = _open(directory).generation
    assert (generation.bos_token_id, generation.pad_token_id) == (256, 7)
    assert generation.sampling == {
        "temperature": 0.6,
        "top_p": 0.9,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.05,
        "max_new_tokens": 99,
    }


def test_ids_that_the_model_does_not_have_are_ignored_with_a_note(hf_directory: Write) -> None:
    directory = hf_directory(pad_token_id=260, eos_token_id=257)
    _edit(directory / "generation_config.json", eos_token_id=[9, 300, 301], pad_token_id=-1, top_k=-1)
    checkpoint = _open(directory)
    assert checkpoint.generation.eos_token_ids == (9, 257)
    assert checkpoint.generation.pad_token_id is None
    assert checkpoint.generation.sampling["top_k"] == 0
    assert [note.removeprefix(str(directory)) for note in checkpoint.notes] == [
        "/generation_config.json: eos_token_id 300, 301 is ignored: the model's vocab_size is 260",
        "/config.json: pad_token_id 260 is ignored: the model's vocab_size is 260",
    ]


@pytest.mark.parametrize(
    "index",
    [
        {"weight_map": {"model.norm.weight": "model-00001-of-00003.safetensors"}},
        {"weight_map": {"ghost": "model.safetensors"}},
        {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}},
        {},
    ],
)
def test_a_stale_index_beside_a_good_file_does_not_count(hf_directory: Write, index: dict[str, Any]) -> None:
    directory = hf_directory()
    expected = _open(directory).tensor_names()
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert _open(directory).tensor_names() == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"eos_token_id": [260]},
        {"bos_token_id": 260},
        {"top_k": -2},
        {"eos_token_id": 260},
        {"eos_token_id": "</s>"},
        {"temperature": "hot"},
        {"top_p": -1.0},
    ],
)
def test_malformed_generation_config_is_refused(hf_directory: Write, changes: dict[str, Any]) -> None:
    directory = hf_directory()
    _edit(directory / "generation_config.json", **changes)
    with pytest.raises(CheckpointError, match=f"generation_config.json: {next(iter(changes))} = "):
        _open(directory)


def test_the_tokenizer_is_written_unchanged(hf_directory: Write, tmp_path: Path) -> None:
    directory = hf_directory()
    _edit(
        directory / "tokenizer_config.json",
        pad_token={"content": "</s>", "special": True},
        additional_special_tokens=["<s>", {"content": "</s>"}],
    )
    _open(directory).write_tokenizer(tmp_path / "out" / "tokenizer")
    written = tmp_path / "out" / "tokenizer"
    assert (written / "tokenizer.json").read_bytes() == (directory / "tokenizer.json").read_bytes()
    assert json.loads((written / "special_tokens.json").read_text()) == {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "unk_token": None,
        "additional_special_tokens": ["<s>", "</s>"],
    }
    assert not (written / "chat_template.jinja").exists()
    assert Tokenizer.from_file(str(written / "tokenizer.json")).encode("Ā<s>").ids[-1] == 256


@pytest.mark.torch
@pytest.mark.parametrize("adds_bos", [None, True, False])
@pytest.mark.parametrize("has_processor", [True, False])
def test_bos_is_added_where_transformers_adds_it(
    hf_directory: Write, tmp_path: Path, has_processor: bool, adds_bos: bool | None
) -> None:
    """The post-processor of tokenizer.json decides, not `add_bos_token`."""
    import transformers

    directory = hf_directory()
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    if has_processor:
        tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    tokenizer.save(str(directory / "tokenizer.json"))
    changes = {} if adds_bos is None else {"add_bos_token": adds_bos}
    _edit(directory / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", **changes)
    theirs = transformers.AutoTokenizer.from_pretrained(directory)("hi").input_ids
    _open(directory).write_tokenizer(tmp_path)
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("hi").ids == theirs
    assert (theirs[0] == 256) == has_processor


@pytest.mark.parametrize(
    ("in_config", "in_file", "expected"),
    [
        ("{{ 1 }}\r\n", None, b"{{ 1 }}\r\n"),
        ([{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}], None, b"d"),
        ("old", "new", b"new"),
    ],
)
def test_the_chat_template_is_found(
    hf_directory: Write, tmp_path: Path, in_config: object, in_file: str | None, expected: bytes
) -> None:
    directory = hf_directory()
    _edit(directory / "tokenizer_config.json", chat_template=in_config)
    if in_file is not None:
        (directory / "chat_template.jinja").write_text(in_file)
    _open(directory).write_tokenizer(tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_bytes() == expected


NAMED = {"default": "d", "tool_use": "t", "rag": "r"}


@pytest.mark.parametrize("place", ["list", "object", "old file", "new files"])
def test_a_template_for_tools_is_found(hf_directory: Write, tmp_path: Path, place: str) -> None:
    directory = hf_directory()
    entries = [{"name": name, "template": template} for name, template in NAMED.items()]
    if place == "list":
        _edit(directory / "tokenizer_config.json", chat_template=entries)
    elif place == "object":
        _edit(directory / "tokenizer_config.json", chat_template=NAMED)
    elif place == "old file":
        _edit(directory / "chat_template.json", chat_template=NAMED)
    else:
        # As transformers 5 saves them; then tokenizer_config.json does not count.
        _edit(directory / "tokenizer_config.json", chat_template=[{"name": "tool_use", "template": "old"}])
        (directory / "chat_template.jinja").write_text("d")
        (directory / "additional_chat_templates").mkdir()
        (directory / "additional_chat_templates" / "tool_use.jinja").write_text("t")
    _open(directory).write_tokenizer(tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "d"
    assert (tmp_path / "out" / "tool_use_template.jinja").read_text() == "t"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ([{"name": "tool", "template": "t"}], "no entry named default.*tool"),
        ([{"name": ["tool"], "template": "t"}], "no entry named default.*tool"),
        (7, "int"),
        ({"default": "d", "tool_use": 7}, "named tool_use is int"),
    ],
)
def test_a_chat_template_that_cannot_be_chosen_is_refused(
    hf_directory: Write, template: object, message: str
) -> None:
    directory = hf_directory()
    _edit(directory / "tokenizer_config.json", chat_template=template)
    with pytest.raises(CheckpointError, match=message):
        _open(directory)


def test_tensors_are_listed_shard_by_shard_as_they_are_stored(hf_directory: Write) -> None:
    directory = hf_directory(num_shards=3)
    stored: list[str] = []
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            stored += file.offset_keys()
    assert _open(directory).tensor_names() == stored
    assert stored != sorted(stored)


def test_a_shard_that_is_cut_after_it_was_opened_is_an_error_in_words(hf_directory: Write) -> None:
    """With a memory map, the process would die of SIGBUS."""
    directory = hf_directory()
    checkpoint = _open(directory)
    last = checkpoint.tensor_names()[-1]
    _cut(directory / "model.safetensors", 4000)
    with pytest.raises(CheckpointError, match=r"model\.safetensors became shorter"):
        checkpoint.read(last)
    (directory / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"cannot read .*model\.safetensors: No such file"):
        checkpoint.read(last)


@pytest.mark.parametrize(
    "header",
    [
        {"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}},
        {"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
        {"w": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}},
        {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 2**63]}},
        {"w": {"dtype": "F32", "shape": "x", "data_offsets": [0, 4]}},
        {"w": [1]},
        ["w"],
        {"w": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}},
    ],
)
def test_a_header_that_lies_is_refused(hf_directory: Write, header: object) -> None:
    directory = hf_directory()
    text = json.dumps(header).encode()
    (directory / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 4)
    with pytest.raises(CheckpointError, match="truncated or not a safetensors file"):
        _open(directory)
