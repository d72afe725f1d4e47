"""Which texts open and close the thinking and tool calls of a model: what the configuration says, or its template shows. Pure.

Templates show them because they write earlier turns: whoever renders a past thinking or tool call spells its markers. Only
pairs that model families really use are looked for, so that a template that merely mentions such a word does not hide text.
"""

from collections.abc import Sequence

from erllama_host.config.model import ModelConfig
from workers.backend.base import Vocabulary
from workers.commands import Submit
from workers.text import NO_MARKERS, AnswerText, Markers, opening_channel

_THINKING = (
    ("<think>", "</think>"),  # DeepSeek R1, Qwen3, SmolLM3, GLM
    ("<thinking>", "</thinking>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
)
_TOOL_CALL = (
    ("<tool_call>", "</tool_call>"),  # Qwen, Hermes, SmolLM3, GLM
    ("<|tool_call|>", "<|/tool_call|>"),  # Phi
    ("<|tool_call_start|>", "<|tool_call_end|>"),  # LFM2
    ("<function_call>", "</function_call>"),
    ("<|START_ACTION|>", "<|END_ACTION|>"),  # Command A
)


def find_markers(config: ModelConfig, template: str | None) -> Markers:
    """The markers of a model."""
    return Markers(
        thinking=_configured(config.thinking_markers) or _shown(template or "", _THINKING),
        tool_call=_configured(config.tool_call_markers) or _shown(template or "", _TOOL_CALL),
    )


class TextMaker:
    """Makes the text filter of each request.

    Attributes:
        markers: of the model; set once it is loaded, before the first request.
    """

    def __init__(self) -> None:
        self.markers = NO_MARKERS

    def __call__(self, vocabulary: Vocabulary, submit: Submit) -> AnswerText:
        channel = opening_channel(vocabulary, submit.prompt, self.markers)
        return AnswerText(vocabulary, submit.stop, self.markers, channel)


def _configured(markers: list[str] | None) -> tuple[str, str] | None:
    return (markers[0], markers[1]) if markers else None


def _shown(template: str, pairs: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    """The first pair of which the template has both."""
    return next((pair for pair in pairs if pair[1] in template and pair[0] in template), None)
