"""Which files of a repository are one model, which one a word means, and which suits a machine."""

from __future__ import annotations

import pytest

from pyskip.models.quantisations import Model, RepoFile, choose, find, models_in, nearest, size_text

GB = 10**9


def repo(**sizes: float) -> list[Model]:
    return models_in(RepoFile(f"m-{name}.gguf", int(size * GB)) for name, size in sizes.items())


@pytest.mark.parametrize(
    ("name", "quantisation", "bits"),
    [
        ("SmolLM2-135M-Instruct-Q4_K_M.gguf", "Q4_K_M", 4),
        ("qwen2.5-0.5b-instruct-q5_0.gguf", "Q5_0", 5),
        ("gemma-4-E2B_q4_0-it.gguf", "Q4_0", 4),
        ("Phi-3-mini-4k-instruct-q4.gguf", "Q4", 4),
        ("m.IQ2_XXS.gguf", "IQ2_XXS", 2),
        ("UD/m-UD-Q4_K_XL-00001-of-00002.gguf", "Q4_K_XL", 4),
        ("m-BF16.gguf", "BF16", 16),
        ("m-fp16.gguf", "FP16", 16),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4", 4),
        ("Q8_0/m.gguf", "", 0),
        ("qwen3-8b.gguf", "", 0),
    ],
)
def test_quantisation(name: str, quantisation: str, bits: int) -> None:
    model = Model((RepoFile(name, 1),))
    assert (model.quantisation, model.bits) == (quantisation, bits)


def test_pieces_are_one_model_where_all_are_there() -> None:
    names = ["a/m-00002-of-00003.gguf", "a/m-00001-of-00003.gguf", "a/m-00003-of-00003.gguf", "n-00001-of-00002.gguf"]
    (model,) = models_in(RepoFile(name, 5) for name in names)
    assert model.path == "a/m-00001-of-00003.gguf"
    assert [file.path for file in model.files] == [f"a/m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert model.size == 15


def test_what_is_no_model_is_left_out() -> None:
    names = ["README.md", "mmproj-m-F16.gguf", "imatrix.gguf", "m-Q4_K_M.skip.gguf", "m.safetensors", "m-Q4_K_M.GGUF"]
    assert [model.path for model in models_in(RepoFile(name, 1) for name in names)] == ["m-Q4_K_M.GGUF"]


@pytest.mark.parametrize(
    "name",
    [
        "mtp-main-Q4_0.gguf", "main-draft-Q4_K_M.gguf", "Drafter-Q4_0.gguf", "main-EAGLE3-Q4_K_M.gguf",
        "eagle-3_main-Q4_0.gguf", "main-speculator-Q4_0.gguf", "main-assistant-Q4_0.gguf", "main-NextN-Q4_K_M.gguf",
        "clip-vit-large-Q8_0.gguf", "main-projector-f16.gguf", "vae-f16.gguf", "vocoder-Q8_0.gguf",
        "main.imatrix.gguf", "imatrix_unsloth.gguf", "main-mmproj-Q8_0.gguf",
        "ggml-vocab-llama-bpe.gguf", "main-vocab.gguf", "main-lora-Q4_0.gguf",
    ],
)  # fmt: skip
def test_what_drafts_or_helps_is_no_model(name: str) -> None:
    assert [model.path for model in models_in(RepoFile(path, 1) for path in ("main-Q8_0.gguf", name))] == [
        "main-Q8_0.gguf"
    ]


@pytest.mark.parametrize("name", ["Eagle-7B-Q4_0.gguf", "m-imatrix-Q4_K_M.gguf", "draft-Q4_0.gguf"])
def test_a_name_that_all_have_says_nothing(name: str) -> None:
    names = [name, name.replace("Q4", "Q8")]
    assert [model.path for model in models_in(RepoFile(path, 1) for path in names)] == names


@pytest.mark.parametrize("name", ["Draftsman-Q4_0.gguf", "m-Eagles-Q4_0.gguf", "smtp-Q4_0.gguf", "m.i1-Q4_0.gguf"])
def test_a_part_of_a_word_says_nothing(name: str) -> None:
    assert len(models_in(RepoFile(path, 1) for path in ("main-Q8_0.gguf", name))) == 2


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("m-Q8_0.gguf", ["m-Q8_0.gguf"]),
        ("M-q8_0.gguf", ["m-Q8_0.gguf"]),
        ("q8_0", ["m-Q8_0.gguf"]),
        ("b/m-F16-00002-of-00002.gguf", ["b/m-F16-00001-of-00002.gguf"]),
        ("Q4_K_M", ["a/m-Q4_K_M.gguf", "m-Q4_K_M.gguf"]),
        ("m-Q4_K_M.gguf", ["m-Q4_K_M.gguf"]),
        ("Q4", []),
    ],
)
def test_find(asked: str, found: list[str]) -> None:
    names = ["m-Q8_0.gguf", "m-Q4_K_M.gguf", "a/m-Q4_K_M.gguf"]
    names += [f"b/m-F16-0000{i}-of-00002.gguf" for i in (1, 2)]
    assert [model.path for model in find(models_in(RepoFile(name, 1) for name in names), asked)] == found


@pytest.mark.parametrize(
    ("sizes", "memory", "chosen", "why"),
    [
        (
            {"Q2_K": 1, "Q4_0": 2, "Q4_K_M": 2.1, "Q8_0": 4, "F16": 8},
            16,
            "Q4_K_M",
            "of 5 models there: fits into 16.00",
        ),
        ({"Q2_K": 1, "Q3_K_M": 1.5, "Q4_K_M": 2.1}, 2.2, "Q3_K_M", "the best of those that fit into 2.20 GB"),
        ({"Q4_K_S": 1.9, "Q4_0": 2, "Q8_0": 4}, 16, "Q4_0", "fits"),
        ({"F16": 8, "Q8_0": 4}, 16, "Q8_0", "fits"),
        ({"Q4_K_M": 20, "Q2_K": 10}, 8, "Q2_K", "the smallest, though it does not fit into 8.00 GB"),
        ({"Q8_0": 4}, None, "Q8_0", "Q8_0 (4.00 GB): fits"),
        ({"model": 4}, 16, "", "m-model.gguf (4.00 GB): fits"),
    ],
)
def test_choose(sizes: dict[str, float], memory: float | None, chosen: str, why: str) -> None:
    model, reason = choose(repo(**sizes), None if memory is None else int(memory * GB))
    assert model.quantisation == chosen
    assert why in reason


def test_nearest() -> None:
    assert nearest("smolm2-135m", ["demo", "smollm2-135m", "qwen3-8b"]) == ": did you mean smollm2-135m?"
    assert nearest("zzz", ["demo"]) == ""


def test_size_text() -> None:
    assert [size_text(n) for n in (12_345, 105_454_432, 2_491_874_272)] == ["12 kB", "105 MB", "2.49 GB"]
