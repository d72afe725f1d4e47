"""Results of the library as tables. Pure: values in, `Table` out; output.py prints them."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from erllama_host.cli.output import Column, Table
from erllama_host.cli.words import bytes_text, count_text, duration_text, rate_text, share_text
from erllama_host.protocol.calls import Event, ModelInfo, ProcessInfo

_NO_MODELS = "No model is loaded. Load one with: erllama load PATH"


def models_table(models: Sequence[ModelInfo]) -> Table:
    """One line per model: `erllama ps`."""
    columns = (
        Column("MODEL", cut=True),
        Column("STATUS", status=True),
        Column("PID", "right", wide=True),
        Column("TOK/S", "right"),
        Column("PREFILL/S", "right", wide=True),
        Column("QUEUE", "right"),
        Column("CELLS", "right"),
        Column("HITS", "right"),
        Column("MEMORY", "right"),
        Column("GPU", "right", wide=True),
        Column("UP", "right"),
        Column("RESTARTS", "right", wide=True),
        Column("QUANT", wide=True),
        Column("CONTEXT", "right", wide=True),
        Column("KV", wide=True),
        Column("LAST FAILURE", wide=True, fold=True),
    )
    return Table(columns, [_model_row(model) for model in models], empty=_NO_MODELS)


def is_busy(model: ModelInfo) -> bool:
    """Whether it computes; the speeds of one that does not are those of its last request."""
    return model.status in ("prefilling", "generating")


def _model_row(model: ModelInfo) -> tuple[str, ...]:
    busy = is_busy(model)
    return (
        model.model_id,
        model.status,
        str(model.pid or "-"),
        rate_text(model.tokens_per_s if busy else 0.0),
        rate_text(model.prefill_tokens_per_s if busy else 0.0),
        str(model.queue_depth),
        share_text(model.used_cells, model.n_cells),
        share_text(model.cache_hits, model.cache_hits + model.cache_misses),
        bytes_text(model.resident_bytes),
        bytes_text(model.device_bytes),
        duration_text(model.uptime_s) if model.pid else "-",
        str(model.restarts),
        model.quantisation or "-",
        count_text(model.n_ctx) if model.n_ctx else "-",
        model.kv_mode or "-",
        model.last_failure or "-",
    )


def pids_table(pids: Mapping[str, Sequence[int]], known: Sequence[ModelInfo]) -> Table:
    """One line per watcher: `erllama models`."""
    by_id = {model.model_id: model for model in known}
    rows = []
    for model_id in sorted(pids.keys() | by_id.keys()):
        model = by_id.get(model_id)
        rows.append(
            (
                model_id,
                model.status if model else "-",
                " ".join(str(pid) for pid in pids.get(model_id, ())) or "-",
                count_text(model.num_parameters) if model and model.num_parameters else "-",
                bytes_text(model.size_bytes) if model else "-",
                model.path if model else "-",
            )
        )
    columns = (
        Column("MODEL", cut=True),
        Column("STATUS", status=True),
        Column("PIDS"),
        Column("PARAMETERS", "right"),
        Column("FILE", "right"),
        Column("PATH", fold=True),
    )
    return Table(columns, rows, empty=_NO_MODELS)


def processes_table(processes: Sequence[ProcessInfo]) -> Table:
    """One line per process of the host: `erllama status`."""
    columns = (
        Column("PROCESS", cut=True),
        Column("STATUS", status=True),
        Column("PID", "right"),
        Column("UP", "right"),
        Column("RESTARTS", "right"),
        Column("MEMORY", "right"),
        Column("LAST FAILURE", fold=True),
    )
    rows = [
        (
            process.role,
            process.status or "-",
            str(process.pid or "-"),
            duration_text(process.uptime_s) if process.pid else "-",
            str(process.restarts),
            bytes_text(process.resident_bytes),
            process.last_failure or "-",
        )
        for process in processes
    ]
    return Table(columns, rows)


def counters_table(counters: Mapping[str, float]) -> Table:
    """Name and value: `erllama counters`."""
    rows = [
        (name, f"{value:,.0f}" if float(value).is_integer() else f"{value:,.3f}") for name, value in counters.items()
    ]
    return Table(
        (Column("COUNTER", cut=True), Column("VALUE", "right")), rows, empty="No counter has that in its name."
    )


def events_table(events: Sequence[Event]) -> Table:
    """One line per event: `erllama events`."""
    return Table(_EVENT_COLUMNS, [event_row(event) for event in events], empty="No events yet.")


_EVENT_COLUMNS = (Column("AT"), Column("EVENT"), Column("MODEL", cut=True), Column("DETAILS", fold=True))


def event_row(event: Event) -> tuple[str, str, str, str]:
    """Local time, name, model, and the fields as `name=value`."""
    return (clock_text(event.at), event.name, event.model or "-", fields_text(event.fields))


def clock_text(at: float) -> str:
    """Local date and time to the second."""
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def fields_text(fields: Mapping[str, Any]) -> str:
    """`a=1 b=text`; lists are joined, so that a line stays a line."""
    parts = []
    for name, value in fields.items():
        shown = " | ".join(str(item) for item in value) if isinstance(value, list) else str(value)
        parts.append(f"{name}={' '.join(shown.split())}")
    return " ".join(parts)
