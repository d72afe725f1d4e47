"""From a file to a model, from options to context parameters; every failure says which file or option and why."""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from erllama_host.config.model import ModelConfig
from erllama_host.errors import ModelLoadFailed
from workers.backend.base import Progress
from workers.backend.llama.library import NATIVE_LOG, initialize, lib
from workers.backend.values import BackendFault, ContextLimits

_SPLIT_MODES = {"none": 0, "layer": 1, "row": 2}
_ROPE_SCALING = {"none": 0, "linear": 1, "yarn": 2, "longrope": 3}
_POOLING = {"none": 0, "mean": 1, "cls": 2, "last": 3}
_KV_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30}
_ALL_LAYERS = -1


def load_model(config: ModelConfig, on_progress: Progress) -> tuple[Any, list[str]]:
    """The model of `config.path`, and llama.cpp's log from loading it; `on_progress` hears of the weights.

    Raises:
        ModelLoadFailed: with llama.cpp's own reason.
    """
    initialize()
    _check_file(Path(config.path))
    _kv_type("type_k", config.type_k)
    _kv_type("type_v", config.type_v)
    params = lib.llama_model_default_params()
    _set_devices(params, config)
    params.load_mode = _load_mode(config)
    # Both callbacks must stay referenced until the call returns.
    progress = lib.llama_progress_callback(_progress_reporter(on_progress))
    params.progress_callback = progress
    NATIVE_LOG.clear()
    with NATIVE_LOG.captured() as lines:
        model = lib.llama_model_load_from_file(os.fsencode(config.path), params)
    if not model:
        raise ModelLoadFailed(f"cannot load {config.path}: {NATIVE_LOG.reason('llama.cpp gave no reason')}")
    try:
        _check_kind(model, config.path)
    except BaseException:
        lib.llama_model_free(model)
        raise
    return model, lines


def _check_kind(model: Any, path: str) -> None:
    """Refuse what llama.cpp loads but cannot run token by token."""
    kind = None
    if lib.llama_model_has_encoder(model) and lib.llama_model_has_decoder(model):
        kind = "an encoder-decoder model"
    elif lib.llama_model_is_diffusion(model):
        kind = "a diffusion model"
    if kind is not None:
        raise ModelLoadFailed(f"cannot load {path}: it is {kind}, which this host does not run")


def _progress_reporter(on_progress: Progress) -> Callable[[float, Any], bool]:
    def report(fraction: float, _user_data: Any) -> bool:
        on_progress(fraction, "weights")
        return True

    return report


def _check_file(path: Path) -> None:
    """What llama.cpp would call "failed to load model", said more clearly."""
    if not path.exists():
        raise ModelLoadFailed(f"cannot load {path}: there is no such file")
    if path.is_dir():
        raise ModelLoadFailed(f"cannot load {path}: it is a directory, name the GGUF file in it")
    if not os.access(path, os.R_OK):
        raise ModelLoadFailed(f"cannot load {path}: it is not readable by this user")


def _set_devices(params: Any, config: ModelConfig) -> None:
    offload = lib.llama_supports_gpu_offload()
    layers = config.n_gpu_layers
    params.n_gpu_layers = (_ALL_LAYERS if layers is None else layers) if offload else 0
    params.split_mode = _SPLIT_MODES[config.split_mode]
    params.main_gpu = config.main_gpu
    if config.tensor_split is not None:
        most = int(lib.llama_max_devices())
        if len(config.tensor_split) > most:
            raise ModelLoadFailed(f"tensor_split names more than {most} devices", option="tensor_split")
        params.tensor_split = (ctypes.c_float * max(most, 1))(*config.tensor_split)


def _load_mode(config: ModelConfig) -> int:
    if config.use_mlock:
        return int(lib.LLAMA_LOAD_MODE_MMAP_MLOCK if config.use_mmap else lib.LLAMA_LOAD_MODE_MLOCK)
    return int(lib.LLAMA_LOAD_MODE_MMAP if config.use_mmap else lib.LLAMA_LOAD_MODE_NONE)


def context_params(config: ModelConfig, limits: ContextLimits, num_native_seqs: int) -> Any:
    """Parameters of the context that generates."""
    params = _common_params(config)
    params.n_ctx = limits.num_cells
    params.n_batch = limits.max_rows
    params.n_ubatch = min(config.n_ubatch, limits.max_rows)
    params.n_seq_max = num_native_seqs
    # llama.cpp makes room for one output per sequence in any case, and aborts where that is more than allowed.
    params.n_outputs_max = max(limits.max_outputs, num_native_seqs)
    # One cache for all sequences: sharing cells and cutting pieces out of a sequence need it.
    params.kv_unified = True
    params.swa_full = config.swa_full
    return params


def embedding_params(config: ModelConfig, limits: ContextLimits, pooling: str, num_seqs: int) -> Any:
    """Parameters of the context that embeds: one computation long, so that pooling covers whole texts."""
    params = _common_params(config)
    params.n_ctx = params.n_batch = params.n_ubatch = limits.max_embed_tokens
    params.n_seq_max = num_seqs
    params.kv_unified = True
    params.embeddings = True
    params.pooling_type = _POOLING[pooling]
    return params


def _common_params(config: ModelConfig) -> Any:
    params = lib.llama_context_default_params()
    cores = default_threads()
    params.n_threads = config.n_threads or cores
    params.n_threads_batch = config.n_threads_batch or config.n_threads or cores
    params.flash_attn_type = int(config.flash_attn)
    params.type_k = _kv_type("type_k", config.type_k)
    params.type_v = _kv_type("type_v", config.type_v)
    if config.rope_scaling_type is not None:
        params.rope_scaling_type = _ROPE_SCALING[config.rope_scaling_type]
    for name in ("rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast",
                 "yarn_beta_slow", "yarn_orig_ctx"):  # fmt: skip
        value = getattr(config, name)
        if value is not None:
            setattr(params, name, value)
    return params


def default_threads() -> int:
    """Physical cores that this process may use: hyper-threads slow llama.cpp down."""
    return max(1, min(psutil.cpu_count(logical=False) or 1, len(os.sched_getaffinity(0))))


def make_context(model: Any, params: Any) -> tuple[Any, list[str]]:
    """A context, and llama.cpp's log lines from making it.

    Raises:
        BackendFault: with llama.cpp's own reason.
    """
    NATIVE_LOG.clear()
    with NATIVE_LOG.captured() as lines:
        context = lib.llama_init_from_model(model, params)
    if not context:
        raise BackendFault(NATIVE_LOG.reason("llama.cpp gave no reason"))
    return context, lines


def check_memory(config: ModelConfig, limits: ContextLimits, bytes_per_cell: int) -> None:
    """Refuse a KV cache that cannot fit: it is resident from the start, so the kernel would end the process instead.

    Raises:
        ModelLoadFailed: names the option that asks for too much.
    """
    if lib.llama_supports_gpu_offload() and config.n_gpu_layers != 0:
        return  # the cache goes to the device, whose own allocator refuses what does not fit
    needed = limits.num_cells * bytes_per_cell
    available = psutil.virtual_memory().available
    if needed > available:
        option = "n_cells" if config.n_cells else "n_ctx"
        raise ModelLoadFailed(
            f"{option} {getattr(config, option) or limits.n_ctx} needs {needed >> 20} MiB for {limits.num_cells} KV cells, "
            f"{available >> 20} MiB are available: lower {option}",
            option=option,
        )


def _kv_type(option: str, name: str) -> int:
    number = _KV_TYPES.get(name.lower())
    if number is None:
        raise ModelLoadFailed(f"{option} {name!r} is unknown; known are {', '.join(_KV_TYPES)}", option=option)
    return number
