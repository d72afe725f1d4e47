"""Opening files and options: what is wrong is said clearly, nothing ends the process."""

import ctypes

import psutil
import pytest

from erllama_host.config.model import ModelConfig
from erllama_host.errors import ModelLoadFailed, NotSupported
from tests.support import ggufs, models
from tests.support.backends import feed, open_gguf_backend, some_tokens
from workers.backend.llama.library import NATIVE_LOG
from workers.backend.open import open_backend

pytestmark = pytest.mark.model

BROKEN = {
    "half": (lambda: ggufs.truncated(ggufs.tiny("attention"), 0.5), "not within file bounds|corrupted|incomplete"),
    "header only": (lambda: ggufs.truncated(ggufs.tiny("attention"), 0.0001), "failed|magic|key|read|GGUF"),
    "text": (ggufs.text_file, "magic"),
    "empty": (ggufs.empty_file, "magic|read|failed"),
    "absurd counts": (lambda: ggufs.absurd_counts(ggufs.tiny("attention")), "tensors|failed|number"),
    "flipped magic": (lambda: ggufs.flipped(ggufs.tiny("attention"), 0), "magic"),
    "adapter": (lambda: ggufs.tiny("lora"), "missing|key not found|failed|hyperparameters"),
    "missing": (lambda: ggufs.scratch_path("nothing.gguf"), "no such file"),
    "directory": (lambda: ggufs.scratch_path("x").parent, "directory"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_are_no_models_are_refused_with_a_reason(name):
    make, reason = BROKEN[name]
    path = make()
    with pytest.raises(ModelLoadFailed, match=reason) as caught:
        open_gguf_backend(path)
    assert str(path) in caught.value.message


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"n_ctx": 2_000_000_000, "n_cells": None}, "n_ctx"),
        ({"n_cells": 2_000_000_000}, "n_cells"),
        ({"type_k": "q9_9"}, "type_k"),
        ({"type_v": "nonsense"}, "type_v"),
        ({"type_v": "q8_0", "flash_attn": False}, "n_ctx"),
        ({"tensor_split": [1.0] * 1000}, "tensor_split"),
    ],
    ids=["n_ctx", "n_cells", "type_k", "type_v", "quantised-v", "tensor_split"],
)
def test_options_that_cannot_be_met_are_named(options, option):
    with pytest.raises(ModelLoadFailed) as caught:
        open_gguf_backend(ggufs.tiny("attention"), **options)
    assert caught.value.details["option"] == option


def test_too_many_sequences_for_a_window_are_refused_by_name():
    with pytest.raises(ModelLoadFailed, match="127 sequences") as caught:
        open_gguf_backend(ggufs.tiny("window"), n_seq_max=130)
    assert caught.value.details["option"] == "n_seq_max"


def test_flipped_weights_load_and_run():
    # llama.cpp checks no weights; that is what the fingerprint of the file is for.
    backend = open_gguf_backend(ggufs.flipped(ggufs.tiny("attention"), -1000))
    feed(backend, 0, some_tokens(backend, 4))
    backend.close()


def test_loading_reports_progress_in_order():
    heard = []
    config = ModelConfig(path=str(models.smollm2()), n_ctx=256, n_threads=1)
    open_backend(config, lambda fraction, phase: heard.append((phase, fraction))).close()
    weights = [fraction for phase, fraction in heard if phase == "weights"]
    assert weights == sorted(weights) and weights[-1] == 1.0 and len(weights) > 10
    assert heard[-1][0] == "context"


def test_defaults_follow_the_model():
    backend = open_gguf_backend(models.smollm2(), n_ctx=None, n_cells=None)
    assert (backend.limits.n_ctx, backend.limits.num_cells) == (8192, 16384)
    info = backend.info
    assert (info.architecture, info.quantization, info.n_vocab) == ("llama", "Q4_1", 49152)
    assert info.chat_template and "im_start" in info.chat_template
    assert info.eos_text == "<|im_end|>" and backend.vocabulary.is_eog(info.eos_id)
    assert info.metadata["general.architecture"] == "llama"
    footprint = backend.footprint()
    assert footprint.host_model_bytes > 80 << 20 and footprint.host_context_bytes > 300 << 20
    backend.close()


def test_dropping_the_context_gives_memory_back():
    backend = open_gguf_backend(models.smollm2(), n_ctx=8192, n_cells=16384)
    feed(backend, 0, some_tokens(backend, 8))
    before = psutil.Process().memory_info().rss
    backend.drop_context()
    ctypes.CDLL(None).malloc_trim(0)
    freed = before - psutil.Process().memory_info().rss
    assert freed > 250 << 20, f"{freed >> 20} MiB of 360 MiB of KV"
    backend.close()


def test_a_file_without_a_tokenizer_serves_token_ids():
    backend = open_gguf_backend(ggufs.tiny("no_vocab"))
    for call in (lambda: backend.vocabulary.tokenize("x"), lambda: backend.vocabulary.detokenize([1])):
        with pytest.raises(NotSupported, match="no tokenizer"):
            call()
    assert backend.vocabulary.piece(5) == b"" and not backend.info.eog_ids
    feed(backend, 0, [5, 6, 7])
    backend.close()


def test_the_log_keeps_the_error_that_came_first():
    NATIVE_LOG.clear()
    for level, text in (
        (2, "info\n"),
        (4, "\n"),
        (5, "...."),
        (4, "the cause\n"),
        (4, "failed to load model\n"),
        (5, "."),
    ):
        NATIVE_LOG.take(level, text)
    assert NATIVE_LOG.reason("none") == "the cause"
    NATIVE_LOG.clear()
    assert NATIVE_LOG.reason("none") == "none"
