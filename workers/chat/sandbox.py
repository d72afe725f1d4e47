"""The helper process: renders one model's chat template, in a sandbox, under limits. Speaks msgpack over stdin and stdout.

Templates come with the model file and are not to be trusted. The sandbox keeps them from Python's insides; it does not keep
them from looping or from growing, so the process has limits of its own: CPU time per rendering (ITIMER_PROF, whose
default action is to end the process) and address space. Whatever happens here, the worker only loses a helper.

The frames are described in frames.py.
"""

import json
import re
import resource
import secrets
import signal
import sys
from datetime import datetime
from typing import Any, BinaryIO, NoReturn

import jinja2
import jinja2.ext
import msgspec
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from workers.chat.frames import CPU_S, LENGTH, Answer, Job, Start, pack

ADDRESS_SPACE_BYTES = 1 << 30
MAX_TEXT_CHARS = 16 << 20
MAX_ERROR_CHARS = 1000
_UNFIT = (jinja2.UndefinedError, TypeError, LookupError, AttributeError, ValueError)
_FAILURES = (*_UNFIT, jinja2.TemplateError, ArithmeticError, RuntimeError)
"""What a template does with values it did not expect may raise anything that operations on plain data raise."""


class Refused(Exception):
    """The template called `raise_exception`."""


class GenerationBlocks(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}`, by which templates mark what the model writes for training: plain text here."""

    tags: set[str] = {"generation"}  # noqa: RUF012  # declared so by the base class

    def parse(self, parser: Parser) -> list[Node]:
        """The statements inside."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Template:
    """A compiled template."""

    def __init__(self, start: Start) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[jinja2.ext.loopcontrols, GenerationBlocks],
            loader=jinja2.DictLoader({}),  # there is nothing to include
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        self._compiled = environment.from_string(start.template)
        self._texts = {"bos_token": start.bos, "eos_token": start.eos}

    def render(self, job: Job) -> Answer:
        """Render, and find the marked strings by rendering once more with placeholders in their places."""
        text = self._text(job, job.messages)
        if len(text) > MAX_TEXT_CHARS:
            return Answer(error=f"it makes {len(text)} characters; at most {MAX_TEXT_CHARS} are allowed")
        return Answer(text=text, runs=self._runs(job, text) if job.marks else None)

    def _text(self, job: Job, messages: list[dict[str, Any]]) -> str:
        # Options first: none of them may take the place of the conversation.
        return self._compiled.render(
            **{
                **job.options,
                **self._texts,
                "messages": messages,
                "tools": job.tools,
                "add_generation_prompt": job.add_generation_prompt,
            }
        )

    def _runs(self, job: Job, text: str) -> list[tuple[str, int]] | None:
        nonce = secrets.token_hex(8)
        messages = msgspec.msgpack.decode(msgspec.msgpack.encode(job.messages))
        originals = []
        for index, path in enumerate(job.marks):
            originals.append(_replace(messages, path, f"\ue000{nonce}.{index}\ue001"))
        try:
            marked = self._text(job, messages)
        except (*_FAILURES, Refused):
            return None
        pieces = re.split(f"\ue000{nonce}\\.([0-9]+)\ue001", marked)
        runs = [(piece, -1) if at % 2 == 0 else (originals[int(piece)], int(piece)) for at, piece in enumerate(pieces)]
        return runs if "".join(run for run, _ in runs) == text else None


def serve(reader: BinaryIO, writer: BinaryIO) -> None:
    """Answer frames until the other side closes."""
    start = _read(reader, Start)
    if start is None:
        return
    # Compiling computes constants, so it can loop and grow as well.
    signal.setitimer(signal.ITIMER_PROF, CPU_S)
    try:
        template = Template(start)
    except (*_FAILURES, SyntaxError, MemoryError) as error:  # SyntaxError: blocks that nest deeper than Python has them
        _write(writer, Answer(error=_said(error)))
        return
    signal.setitimer(signal.ITIMER_PROF, 0)
    _write(writer, Answer(ready=True))
    while (job := _read(reader, Job)) is not None:
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        answer = _guarded(template, job)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _write(writer, answer)


def _guarded(template: Template, job: Job) -> Answer:
    try:
        return template.render(job)
    except Refused as error:
        return Answer(error=str(error)[:MAX_ERROR_CHARS], refused=True)
    except MemoryError:
        return Answer(error="it needs too much memory")
    except _FAILURES as error:
        unfit = isinstance(error, _UNFIT) and not isinstance(error, jinja2.TemplateNotFound)
        return Answer(error=_said(error), unfit=unfit)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARS]


def _replace(messages: Any, path: list[int | str], text: str) -> str:
    *parents, last = path
    holder = messages
    for key in parents:
        holder = holder[key]
    original = holder[last]
    assert isinstance(original, str)
    holder[last] = text
    return original


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    """Plain JSON: Jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise Refused(message)


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)


def _read(reader: BinaryIO, frame_type: type[Any]) -> Any:
    head = reader.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    return msgspec.msgpack.decode(reader.read(LENGTH.unpack(head)[0]), type=frame_type)


def _write(writer: BinaryIO, answer: Answer) -> None:
    writer.write(pack(answer))
    writer.flush()


def main() -> None:
    """Put the limits on, then serve."""
    from erllama_host.process import die_with_parent

    die_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _, most = resource.getrlimit(resource.RLIMIT_AS)  # the worker may have a limit of its own
    limit = ADDRESS_SPACE_BYTES if most == resource.RLIM_INFINITY else min(ADDRESS_SPACE_BYTES, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    serve(sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
