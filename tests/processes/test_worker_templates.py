"""Templates that mean harm, or do it, in the helper process: bounded time and memory, an error, the next one works."""

import os
import signal

import pytest

from erllama_host.errors import InternalError, InvalidRequest, NotSupported
from erllama_host.process import exists
from tests.support.workers import until
from workers.chat.frames import Job, Start
from workers.chat.helper import TemplateHelper

pytestmark = pytest.mark.process

USER = [{"role": "user", "content": "hi"}]
GOOD = Job(messages=USER)


def helper_for(template):
    return TemplateHelper(Start(template, "<s>", "</s>"))


@pytest.fixture
def render():
    made = []

    def run(template, job=GOOD):
        made.append(helper_for(template))
        return made[-1].render(job)

    yield run
    for helper in made:
        helper.close()


def test_a_good_template_renders(render):
    text = "{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content }}{% endfor %}"
    assert render(text).text == "<s>user: hi"


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ messages.append(1) }}",
        "{{ 1 // 0 }}",
        "{{ range(999999999) }}",
        "{% include 'etc/passwd' %}",
        "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    ],
)
def test_what_reaches_out_or_fails_is_an_error(render, template):
    with pytest.raises(NotSupported, match="template") as caught:
        render(template)
    assert caught.value.details["what"] == "template"


@pytest.mark.parametrize(
    "template", ["{{ nothing.attribute }}", "{{ messages[7].content + 1 }}", "{{ messages[0].role + 1 }}"]
)
def test_what_stumbles_over_the_messages_is_the_callers_fault(render, template):
    with pytest.raises(InvalidRequest, match="cannot render these messages") as caught:
        render(template)
    assert caught.value.details["field"] == "chat.messages"


@pytest.mark.parametrize(
    "template",
    [
        "{% for",
        "{{ 'x' * (10 ** 12) }}",
        "{% bogus %}",
        "{% for a in [1] %}" * 21 + "{% endfor %}" * 21,  # more than Python takes
        "{% if true %}" * 100 + "{% endif %}" * 100,
    ],
)
def test_what_does_not_compile_is_an_error(render, template):
    with pytest.raises(NotSupported, match="template"):
        render(template)


def test_a_refusal_of_the_template_is_the_callers_fault(render):
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


def test_a_refusal_is_told_in_few_words(render):
    with pytest.raises(InvalidRequest, match="no such role: xxx") as caught:
        role = [{"role": "x" * 1_000_000, "content": "hi"}]
        render("{{ raise_exception('no such role: ' + messages[0].role) }}", Job(messages=role))
    assert len(caught.value.message) < 2000


def test_messages_that_nest_too_deeply_are_the_callers_fault(render):
    content = "hi"
    for _ in range(2000):
        content = [content]
    with pytest.raises(InvalidRequest, match="nest"):
        render("ok", Job(messages=[{"role": "user", "content": content}]))


def test_a_helper_that_does_not_read_is_not_waited_for_longer_than_one_that_does_not_answer(monkeypatch):
    helper = helper_for("ok")
    try:
        helper.render(GOOD)
        os.kill(helper.pid, signal.SIGSTOP)
        monkeypatch.setattr("workers.chat.helper.WALL_S", 0.3)
        with pytest.raises(NotSupported, match="did not answer"):
            helper.render(Job(messages=[{"role": "user", "content": "x" * 10_000_000}]))
        monkeypatch.undo()
        assert helper.render(GOOD).text == "ok"
    finally:
        helper.close()


def test_a_helper_that_cannot_be_started_is_an_error_of_that_request(monkeypatch):
    helper = helper_for("ok")
    with monkeypatch.context() as context:
        context.setattr("sys.executable", "/nowhere/python")
        with pytest.raises(InternalError, match="cannot be started"):
            helper.render(GOOD)
    try:
        assert helper.render(GOOD).text == "ok"
    finally:
        helper.close()


def test_a_template_that_loops_is_ended_and_the_helper_replaced():
    loop = (
        "{% if messages[0].content == 'loop' %}{% for a in range(99999) %}{% for b in range(99999) %}"
        "{% endfor %}{% endfor %}{% endif %}ok"
    )
    helper = helper_for(loop)
    try:
        assert helper.render(GOOD).text == "ok"
        first = helper.pid
        with pytest.raises(NotSupported, match="CPU time"):
            helper.render(Job(messages=[{"role": "user", "content": "loop"}]))
        assert not exists(first)
        assert helper.render(GOOD).text == "ok"
        assert helper.pid != first
    finally:
        helper.close()


def test_a_template_that_grows_is_an_error_and_the_helper_goes_on():
    grow = "{% if messages[0].content == 'grow' %}{% set x = messages[0].content * (2 ** 29) %}{{ x }}{% endif %}ok"
    helper = helper_for(grow)
    try:
        with pytest.raises(NotSupported, match=r"memory|characters|limits"):
            helper.render(Job(messages=[{"role": "user", "content": "grow"}]))
        assert helper.render(GOOD).text == "ok"
    finally:
        helper.close()


def test_a_killed_helper_is_replaced():
    helper = helper_for("ok")
    try:
        helper.render(GOOD)
        first = helper.pid
        os.kill(first, 9)
        until(lambda: not exists(first), "the helper to be gone")
        assert helper.render(GOOD).text == "ok"
    finally:
        helper.close()


def test_runs_name_the_places_of_marked_strings(render):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"text": "b"}]}]
    template = "<{{ messages[0].content }}|{{ messages[1].content[0].text }}|{{ messages[0].content }}>"
    answer = render(template, Job(messages=messages, marks=[[0, "content"], [1, "content", 0, "text"]]))
    assert answer.runs == [("<", -1), ("a", 0), ("|", -1), ("b", 1), ("|", -1), ("a", 0), (">", -1)]


@pytest.mark.parametrize(
    "template",
    [
        "{% if messages[0].content == 'hi' %}yes{{ messages[0].content }}{% endif %}",
        "{{ messages[0].content }}{{ 8 // (messages[0].content | length - 20) }}",  # as long as a mark is
    ],
)
def test_runs_are_not_given_where_the_template_looks_at_the_string(render, template):
    assert render(template, Job(messages=USER, marks=[[0, "content"]])).runs is None
