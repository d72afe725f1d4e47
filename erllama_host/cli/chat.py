"""`erllama chat`: a conversation on the terminal.

The whole conversation is the prompt of every turn; the cache makes that cheap. Ctrl-C cancels the answer and keeps what
came; at the prompt it clears the line. Ctrl-D or `/exit` leaves.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erllama_host.cli import answering
from erllama_host.cli.connection import open_client, paths_of
from erllama_host.cli.options import MaxTokens, ModelName, Seed, Temperature
from erllama_host.cli.output import note
from erllama_host.errors import CapacityError, ErllamaError, HostUnavailable, PeerError, RequestError

if TYPE_CHECKING:
    from erllama_host.client import Model

_HISTORY_LINES = 1000
_HELP = """\
/help            this text
/clear           begin anew, with the same instructions
/system [TEXT]   set (or remove) the instructions and begin anew
/history         show the conversation
/retry           answer the last question again
/stats           figures of the last answer
/exit            leave (or Ctrl-D)
Ctrl-C           stop the answer; at the prompt: clear the line
A line that ends with \\ goes on in the next one."""


def chat(
    ctx: typer.Context,
    model: ModelName,
    system: Annotated[
        str | None, typer.Option("--system", help="Instructions for the model.", show_default=False)
    ] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = 0.7,
    top_p: Annotated[
        float, typer.Option("--top-p", min=0.0, max=1.0, help="Keep tokens up to this probability.")
    ] = 0.95,
    seed: Seed = None,
) -> None:
    """Talk with a model on the terminal.

    Ctrl-C stops an answer, Ctrl-D leaves, /help tells the rest. Reads questions line by line when stdin is no terminal.

    Examples:
        $ erllama chat tiny
        $ erllama chat tiny --system "Answer in one sentence." -t 0
    """
    params: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "seed": seed}
    if max_tokens is not None:
        params["max_tokens"] = max_tokens
    with open_client(ctx) as host:
        chosen = host.model(model)
        info = chosen.info()
        reader = LineReader(paths_of(ctx).home / "chat_history")
        if reader.interactive:
            note(
                f"{info.model_id}: {info.description or info.architecture or info.backend}, context {info.n_ctx}. /help for help."
            )
        Conversation(chosen, params, system).talk(reader)


class LineReader:
    """Reads what the person types, with editing and history on a terminal."""

    def __init__(self, history_file: Path) -> None:
        self.interactive = sys.stdin.isatty()
        self._history_file = history_file
        if self.interactive:
            self._load_history()

    def read(self) -> str | None:
        """The next question; "" after Ctrl-C at the prompt; None at the end."""
        lines: list[str] = []
        prompt = ">>> " if self.interactive else ""
        while True:
            try:
                line = input(prompt)
            except EOFError:
                if self.interactive:
                    print()
                return "\n".join(lines) if lines else None
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                print()
                return ""
            if not line.endswith("\\"):
                return "\n".join([*lines, line])
            lines.append(line[:-1])
            prompt = "... " if self.interactive else ""

    def _load_history(self) -> None:
        """Lines of earlier chats; a home that cannot be written costs the history only."""
        import readline

        readline.set_history_length(_HISTORY_LINES)
        try:
            readline.read_history_file(self._history_file)
        except OSError:
            readline.clear_history()

    def save_history(self) -> None:
        """Keep the lines for the next chat, for this user only."""
        if not self.interactive:
            return
        import readline

        try:
            self._history_file.touch(mode=0o600)
            readline.write_history_file(self._history_file)
        except OSError as error:
            note(f"the history could not be kept: {error}")


@dataclass
class Conversation:
    """Messages so far, and the commands that change them. Owned by the one loop of `talk`."""

    model: "Model"
    params: dict[str, Any]
    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)
    last_stats: str = "there has been no answer yet"

    def talk(self, reader: LineReader) -> None:
        """Question and answer until the person leaves."""
        try:
            while (line := reader.read()) is not None:
                if line.startswith("/"):
                    if self.command(line) == "leave":
                        return
                elif line.strip():
                    self.ask(line)
        finally:
            reader.save_history()

    def ask(self, question: str) -> None:
        """One turn. After an error the question is taken back, so that it can be asked again."""
        self.messages.append({"role": "user", "content": question})
        try:
            self._answer()
        except (CapacityError, PeerError, RequestError) as error:
            self.messages.pop()
            if isinstance(error, HostUnavailable):
                raise
            _say_error(error)

    def _answer(self) -> None:
        with self.model.chat_stream(self.messages, self.system, **self.params) as stream:
            answer = answering.show(stream, sys.stdout)
            if stream.stats is not None:
                self.last_stats = answering.stats_line(stream.stats)
        if answer.interrupted:
            note("(stopped)")
        self.messages.append({"role": "assistant", "content": answer.text})

    def command(self, line: str) -> str | None:
        """Carry out a `/command`; "leave" ends the chat."""
        name, _, rest = line.partition(" ")
        if name in ("/exit", "/quit", "/bye"):
            return "leave"
        actions = {
            "/help": self._help,
            "/clear": self._clear,
            "/history": self._history,
            "/retry": self._retry,
            "/stats": self._stats,
        }
        if name == "/system":
            self.system = rest.strip() or None
            self._clear()
        elif name in actions:
            actions[name]()
        else:
            note(f"{name} is no command; /help lists them")
        return None

    def _help(self) -> None:
        note(_HELP)

    def _clear(self) -> None:
        self.messages.clear()
        note("a new conversation" + (f", with instructions: {self.system}" if self.system else ""))

    def _history(self) -> None:
        for message in self.messages:
            print(f"{message['role']}: {message['content']}")

    def _retry(self) -> None:
        if len(self.messages) < 2:
            note("there is nothing to answer again")
            return
        self.messages.pop()
        self.ask(self.messages.pop()["content"])

    def _stats(self) -> None:
        note(self.last_stats)


def _say_error(error: ErllamaError) -> None:
    hint = " (try again)" if error.retryable else ""
    note(f"erllama: {error.message}{hint}")
