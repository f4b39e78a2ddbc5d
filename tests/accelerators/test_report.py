"""The verdicts of scripts/accelerators, and how two small models become a whole one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from accelerator_check.cases import cut, programs_to_check, sizes
from accelerator_check.main import main
from accelerator_check.read import Figures
from accelerator_check.report import FAIL, OK, UNKNOWN, Row, page, verdict
from accelerator_check.targets import compiling_environment

from vinfer.bundle.programs import ProgramShape

MB = 10**6
LIMIT = 100 * MB


def figures(temp_mb: int | None = 10, copies: tuple[str, ...] | None = (), **others: object) -> Figures:
    temp = None if temp_mb is None else temp_mb * MB
    return Figures(temp_bytes=temp, copies=copies, **others)  # type: ignore[arg-type]


def row(*by_size: Figures, num_layers: int = 16, program: str = "prefill[1,64]") -> Row:
    by_layers = dict(zip((2, 4), by_size, strict=False))
    return Row("v5e", "model", program, by_layers, num_layers, tp=1, max_traffic=1.1)


@pytest.mark.parametrize(
    ("by_size", "expected"),
    [
        ((figures(), figures()), OK),
        ((figures(), figures(copies=("1 x copy bf16[2048,128,512]",))), FAIL),
        # 10 MB at 2 layers and 30 MB at 4 are 150 MB at 16.
        ((figures(10), figures(30)), FAIL),
        ((figures(10), figures(20)), OK),
        ((figures(101), figures(1)), FAIL),
        ((figures(), figures(copies=None, unknown=("HLO: garbage",))), UNKNOWN),
        ((figures(), figures(temp_mb=None)), UNKNOWN),
        # What is known may be bad enough.
        ((figures(), figures(101, copies=None)), FAIL),
        ((), UNKNOWN),
    ],
)
def test_verdict(by_size: tuple[Figures, ...], expected: str) -> None:
    assert verdict(row(*by_size), LIMIT) == expected


@pytest.mark.parametrize(
    ("steps", "expected"),
    [((100.0, 130.0), OK), ((100.0, 150.0), FAIL), ((None, 130.0), UNKNOWN)],
)
def test_a_decode_step_may_move_little_more_than_the_ideal(
    steps: tuple[float | None, float], expected: str
) -> None:
    """The ideal of 16 layers is 300, and the limit 330: 310 is good and 450 is not."""
    by_size = [
        figures(step_bytes=step, ideal_bytes=ideal) for step, ideal in zip(steps, (90.0, 120.0), strict=True)
    ]
    assert verdict(row(*by_size, program="decode[1,8]"), LIMIT) == expected
    assert verdict(row(*by_size, program="verify[1,5]"), LIMIT) == expected
    # Other programs have no ideal.
    assert verdict(row(*by_size), LIMIT) == OK


def test_a_copy_counts_more_than_what_is_unknown() -> None:
    copied = figures(copies=("1 x copy bf16[8,8]",))
    assert verdict(row(copied, copied, program="decode[1,8]"), LIMIT) == FAIL


def test_figures_of_a_whole_model_grow_with_its_layers() -> None:
    of_model = row(figures(step_bytes=100.0), figures(step_bytes=130.0))
    assert of_model.whole("step_bytes") == 130 + 12 * 15
    assert row(figures(step_bytes=100.0), figures()).whole("step_bytes") is None
    assert row(figures(step_bytes=100.0)).whole("step_bytes") is None


def test_the_page_names_each_copy_and_each_reason() -> None:
    rows = [
        row(figures(), figures(copies=("2 x copy bf16[8,8]",))),
        row(figures(copies=None, unknown=("HLO: garbage",)), figures()),
    ]
    text = page(rows, max_temp_bytes=LIMIT, row_len=1024, versions="jax 1", setup="Small.")
    assert "- v5e, model, `prefill[1,64]`, tp 1: makes 2 x copy bf16[8,8] anew" in text
    assert "- v5e, model, `prefill[1,64]`, tp 1: unknown: HLO: garbage" in text
    assert "| FAIL |" in text
    assert "| unknown |" in text


def test_a_cut_config_keeps_what_belongs_to_its_layers() -> None:
    config = {"num_hidden_layers": 3, "layer_types": ["a", "b", "a"], "eos_token_id": [1, 2], "x": 3}
    assert cut(config, 2) == {
        "num_hidden_layers": 2,
        "layer_types": ["a", "b"],
        "eos_token_id": [1, 2],
        "x": 3,
    }


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        ([None] * 16, (2, 4)),
        ([128, None] * 12, (2, 4)),
        # Gemma 3 1B: full attention in every sixth layer, and two layers more.
        ([512, 512, 512, 512, 512, None] * 4 + [512, 512], (6, 12)),
        ([None, 64, 64] * 3, (3, 6)),
    ],
)
def test_small_models_have_the_windows_of_the_whole_model(
    windows: list[int | None], expected: tuple[int, int]
) -> None:
    assert sizes(windows) == expected


def test_programs_of_few_rows_of_all_rows_and_the_longest_prefill_are_checked() -> None:
    shapes = [ProgramShape(kind="set_slot"), ProgramShape(kind="copy_page")]
    shapes += [ProgramShape(kind="prefill", rows=1, length=length) for length in (64, 256, 1024)]
    shapes += [ProgramShape(kind="decode", rows=rows, length=8) for rows in (1, 4, 32)]
    shapes.append(ProgramShape(kind="encode_images", rows=1, image=(3, 448, 448)))
    image = shapes[-1].name
    names = [shape.name for shape in programs_to_check(shapes)]
    assert names == ["copy_page", "decode[1,8]", "decode[4,8]", "decode[32,8]", "prefill[1,1024]", image]
    shapes += [ProgramShape(kind="verify", rows=rows, length=5) for rows in (1, 4, 32)]
    names = [shape.name for shape in programs_to_check(shapes)]
    assert names[4:6] == ["verify[1,5]", "verify[32,5]"]
    assert [shape.name for shape in programs_to_check(shapes, "largest decode")] == [
        "decode[32,8]",
        "prefill[1,1024]",
        image,
    ]


def test_a_missing_compiler_is_named_with_its_version(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", ["accelerators", "--targets", "v5e,h100"])
    assert main("") == 2
    message = capsys.readouterr().err
    assert "libtpu==" in message
    assert "jax-cuda12-pjrt==" in message
    assert "nvidia-cuda-nvcc-cu12" in message


def test_flags_of_easydel_do_not_reach_the_compiler() -> None:
    environment = compiling_environment({"XLA_FLAGS": "--xla_gpu_x=1", "HOME": "/home"})
    assert "XLA_FLAGS" not in environment
    assert environment["HOME"] == "/home"
