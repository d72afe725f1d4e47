"""Limits, logprobs, names and tables of the backends: what needs no model."""

import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

import workers.backend.llama as llama_package
from erllama_host.config.model import ModelConfig
from erllama_host.errors import InvalidRequest, ModelLoadFailed
from workers.backend.checks import check_bias, check_ids
from workers.backend.limits import resolve_limits
from workers.backend.llama import library
from workers.backend.llama.embedding import group_texts
from workers.backend.llama.facts import quantization_name
from workers.backend.llama.footprint import FootprintLog
from workers.backend.llama.required import REQUIRED
from workers.backend.logprobs import logprob_of


def limits_of(n_ctx_train=4096, *, has_recurrent=False, seqs_per_id=1, **config):
    return resolve_limits(
        ModelConfig(path="x", **config),
        n_ctx_train=n_ctx_train,
        has_recurrent=has_recurrent,
        seqs_per_id=seqs_per_id,
        num_inner_seqs=2,
    )


def test_limits_have_the_documented_defaults():
    limits = limits_of(n_ctx_train=131072)
    assert (limits.n_ctx, limits.num_cells, limits.num_slots, limits.max_rows) == (8192, 16384, 4, 512)
    assert limits_of(n_ctx_train=2048).n_ctx == 2048
    assert limits_of(n_ctx_train=0).n_ctx == 8192
    assert limits_of(n_ctx=100, n_cells=300).num_cells == 300


@pytest.mark.parametrize("n_seq_max", [1, 4, 100, 200])
@pytest.mark.parametrize("seqs_per_id", [1, 2])
def test_native_sequences_stay_below_what_llama_cpp_allows(n_seq_max, seqs_per_id):
    try:
        limits = limits_of(n_seq_max=n_seq_max, seqs_per_id=seqs_per_id)
    except ModelLoadFailed as error:
        assert error.details["option"] == "n_seq_max" and (n_seq_max, seqs_per_id) == (200, 2)
        return
    assert n_seq_max <= limits.num_seqs
    assert limits.num_seqs * seqs_per_id + 2 <= 256


def test_outputs_have_room_for_every_draft():
    assert limits_of(n_seq_max=8, prompt_lookup=7).max_outputs == 64
    assert limits_of(n_batch=16).max_outputs == 16


def test_recurrent_models_keep_fewer_sequences():
    assert limits_of(has_recurrent=True).num_seqs < limits_of().num_seqs


@pytest.mark.parametrize(
    ("native", "name"),
    [
        (b"Q4_K - Medium", "Q4_K_M"),
        (b"Q3_K - Small", "Q3_K_S"),
        (b"Q6_K", "Q6_K"),
        (b"Q4_1", "Q4_1"),
        (b"all F32", "F32"),
        (b"(guessed) Q8_0", "Q8_0"),
        (b"IQ2_XXS - 2.0625 bpw", "IQ2_XXS"),
        (b"BF16", "BF16"),
        (b"", "unknown"),
        (None, "unknown"),
    ],
)
def test_quantization_names(native, name):
    assert quantization_name(native) == name


def test_texts_are_grouped_in_order_within_both_bounds():
    texts = [[1] * size for size in (5, 5, 5, 10, 1, 1, 1, 9)]
    groups = list(group_texts(texts, 10, 3))
    assert [text for group in groups for text in group] == texts
    assert all(sum(map(len, group)) <= 10 and len(group) <= 3 for group in groups)
    assert len(groups) == 5
    assert list(group_texts([], 10, 3)) == []


def test_buffer_sizes_are_read_from_the_log():
    log = [
        "load_tensors:   CPU_Mapped model buffer size =    92.10 MiB",
        "load_tensors:        CUDA0 model buffer size =  1000.50 MiB",
        "something else 12 MiB",
    ]
    footprint = FootprintLog(log)
    footprint.add_context(
        ["llama_kv_cache:        CPU KV buffer size =   10.00 MiB", "CUDA_Host compute buffer size = 2.00 MiB"]
    )
    now = footprint.footprint()
    assert now.host_model_bytes == int(92.10 * 2**20) and now.device_model_bytes == int(1000.5 * 2**20)
    assert now.host_context_bytes == 12 << 20 and now.device_context_bytes == 0
    footprint.forget_contexts()
    assert footprint.footprint().host_context_bytes == 0


def test_every_native_function_that_is_called_is_required():
    source = "".join(path.read_text() for path in Path(llama_package.__path__[0]).glob("*.py"))
    called = set(re.findall(r"(?:\blib\.|_brief\(\")(llama_[a-z0-9_]+)[(\"]", source)) | set(
        re.findall(r"_text\(lib\.(llama_\w+)", source)
    )
    types = {"llama_batch", "llama_token_data_array", "llama_log_callback", "llama_progress_callback"}
    assert called - types == set(REQUIRED)
    assert all(hasattr(library.lib, name) for name in REQUIRED)


def test_a_library_without_a_needed_function_is_a_clear_error(monkeypatch):
    monkeypatch.setattr(library, "_initialized", False)
    monkeypatch.delattr(library.lib, "llama_memory_seq_cp")
    with pytest.raises(ModelLoadFailed, match="llama_memory_seq_cp") as caught:
        library.initialize()
    assert version("llama-cpp-python") in caught.value.message


HIDE_VERSION = (
    "re.compile = lambda pattern, flags=0: compiled('(?!)' if '__version__' in str(pattern) else pattern, flags)"
)


@pytest.mark.parametrize("prepare", ["pass", "import llama_cpp", HIDE_VERSION])
def test_the_library_is_entered_whatever_its_package_looks_like(prepare):
    """Without running it; when it has been run already; and by running it, when its version cannot be read."""
    code = (
        f"import json, re, sys; compiled = re.compile; {prepare}; "
        "from workers.backend.llama import binding; re.compile = compiled; "
        "print(json.dumps([binding.VERSION, hasattr(binding.lib, 'llama_decode'), 'llama_cpp.llama' in sys.modules]))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(output.stdout) == [version("llama-cpp-python"), True, prepare != "pass"]


def test_logprobs_survive_banned_tokens_and_order_ties_by_id():
    logits = np.array([1.0, 3.0, -np.inf, 3.0, 2.0], np.float32)
    report = logprob_of(logits, 2, 3)
    assert report.logprob == -np.inf
    assert [token for token, _ in report.top] == [1, 3, 4]
    assert len(logprob_of(logits, 0, 20).top) == 5


def test_ids_are_checked_at_both_ends():
    check_ids([], 10)
    check_ids([0, 9], 10)
    for bad in ([10], [-1], [3, -5, 99]):
        with pytest.raises(InvalidRequest):
            check_ids(bad, 10)
    with pytest.raises(InvalidRequest):
        check_bias({"10": 1.0}, 10)
