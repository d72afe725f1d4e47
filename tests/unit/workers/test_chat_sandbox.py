"""What templates of real models use, rendered in this process; the limits are tested with the helper process."""

import io
from datetime import datetime

import pytest

from workers.chat.frames import LENGTH, Job, Start, pack
from workers.chat.sandbox import Template, serve

USER = [{"role": "user", "content": "hi"}]


def render(template, messages=USER, **job):
    return Template(Start(template, "<s>", "</s>")).render(Job(messages=messages, **job)).text


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (
            "{%- set ns = namespace(n=0) -%}{%- for m in messages -%}{%- set ns.n = ns.n + 1 -%}{%- endfor -%}{{ ns.n }}",
            "1",
        ),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{{ {'a': '<é>', 'b': [1]} | tojson }}", '{"a": "<é>", "b": [1]}'),
        ("{{ {'a': 1} | tojson(indent=2) }}", '{\n  "a": 1\n}'),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", "hi"),
        ("{% macro show(m) %}[{{ m['content'] }}]{% endmacro %}{{ show(messages[0]) }}", "[hi]"),
        ("{{ '<think>x</think>\n\ny'.split('</think>')[-1].lstrip('\n') }}", "y"),
        ("{% for m in messages[::-1] %}{{ loop.first and m.role is string }}{% endfor %}", "True"),
        ("{{ bos_token + eos_token }}", "<s></s>"),
        ("{{ messages[0].nothing is defined }}{{ tools is none }}", "FalseTrue"),
        ("{%- if true %}\n  x\n{%- endif %}", "  x"),
    ],
)
def test_what_templates_use_works(template, expected):
    assert render(template) == expected


def test_the_date_is_todays():
    assert render("{{ strftime_now('%Y') }}") in {str(datetime.now().year), str(datetime.now().year - 1)}


def test_options_reach_the_template_but_do_not_replace_the_conversation():
    template = "{{ enable_thinking }} {{ messages[0].content }} {{ add_generation_prompt }}"
    assert (
        render(template, options={"enable_thinking": False, "messages": [], "add_generation_prompt": 7})
        == "False hi True"
    )


def test_the_template_cannot_change_the_messages_for_the_second_rendering():
    template = "{{ messages[0].content }}{{ messages[0].update({'content': 'x'}) }}"
    with pytest.raises(Exception, match="unsafe"):
        render(template)


def test_a_very_long_text_is_refused():
    answer = Template(Start("{{ 'x' * (2 ** 24 + 1) }}", "", "")).render(Job(messages=USER))
    assert answer.text == "" and "characters" in answer.error


def test_frames_end_with_the_input():
    frames = io.BytesIO(pack(Start("ok", "", "")) + pack(Job(messages=USER))[:-1])
    out = io.BytesIO()
    with pytest.raises(Exception, match="truncated"):
        serve(frames, out)
    assert len(out.getvalue()) > LENGTH.size  # the first answer: ready
