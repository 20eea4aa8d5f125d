"""Chat templates: the same text as transformers, and a sandbox around them."""

from __future__ import annotations

import re
import resource
from typing import Any

import pytest

from bitwright.errors import InputError, UsageError
from bitwright.runtime.chat import ChatTemplate

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Grüße & <b>\n"},
    {"role": "assistant", "content": "  Hi  "},
    {"role": "user", "content": "2+2?"},
]

# What templates of released models do: SmolLM2's, Llama 2's and Llama 3's idioms, and Jinja features they use.
TEMPLATES = {
    "smollm2": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama 2": (
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% endif %}"
        "{% for message in loop_messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
        "{% endif %}{% if message['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "blocks on lines": (
        "{%- set ns = namespace(count=0) -%}\n{% for message in messages %}\n"
        "  {% set ns.count = ns.count + 1 %}\n"
        "  {{- message.role | upper }}: {{ message.content | trim }}\n{% endfor %}\n"
        "{{ ns.count }} {{ tools is none }}\n"
    ),
    "loop controls and json": (
        "{% for message in messages %}{% if loop.index > 2 %}{% break %}{% endif %}"
        "{{ message | tojson }}{{ message.content | tojson(indent=2) }}{% endfor %}"
    ),
    "generation tag": (
        "{% for message in messages %}{% if message.role == 'assistant' %}"
        "{% generation %}{{ message.content }}{% endgeneration %}{% else %}{{ message.content }}{% endif %}{% endfor %}"
    ),
}


def ours(source: str) -> ChatTemplate:
    return ChatTemplate(source, where="chat_template.jinja", tokens={"bos_token": "<s>", "eos_token": "</s>"})


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@pytest.mark.parametrize("prompt", [True, False])
def test_the_text_is_that_of_transformers(name: str, prompt: bool) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered, _ = render_jinja_template(
        [MESSAGES],
        chat_template=TEMPLATES[name],
        add_generation_prompt=prompt,
        bos_token="<s>",
        eos_token="</s>",
    )
    assert ours(TEMPLATES[name]).render(MESSAGES, add_generation_prompt=prompt) == rendered[0]


def test_dates_are_available() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", ours("{{ strftime_now('%Y-%m-%d') }}").render(MESSAGES))


@pytest.mark.parametrize(
    ("source", "limit"),
    [
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ messages.__init__.__globals__ }}", "unsafe"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
        ("{{ missing.attribute }}", "'missing' is undefined"),
        ("{{ raise_exception('only users may speak') }}", "only users may speak"),
        ("{{ 1 // 0 }}", "zero"),
        ("{{ messages[0].content + 1 }}", "concatenate"),
        ("{% include 'other' %}", "no loader"),
    ],
)
def test_what_a_template_may_not_do_is_an_input_error(source: str, limit: str) -> None:
    template = ours(source)
    with pytest.raises(InputError) as caught:
        template.render(MESSAGES)
    assert caught.value.what == "the chat template failed"
    assert limit in str(caught.value.limit)
    assert str(caught.value.where).startswith("chat_template.jinja")


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10 ** 10 }}",
        "{{ messages[0].content * 10 ** 10 }}",
        "{{ 'a'.ljust(10 ** 10) }}",
        "{% set ns = namespace(x='abcdefgh') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    ],
)
def test_a_template_cannot_fill_the_memory(source: str) -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(InputError) as caught:
        ours(source).render(MESSAGES)
    assert caught.value.limit == "at most 1073741824 bytes of memory"
    assert resource.getrlimit(resource.RLIMIT_AS) == before


@pytest.mark.parametrize("source", ["{% for %}", "{{ a", "{% endif %}", "{{ x | no_such_filter }}", "{% import os %}"])
def test_a_template_that_is_not_valid_is_refused_with_its_line(source: str) -> None:
    with pytest.raises(InputError) as caught:
        ours("one line\n" + source)
    assert caught.value.what == "the chat template is not valid"
    assert caught.value.where == "chat_template.jinja, line 2"


@pytest.mark.parametrize("messages", [[], [{"role": "user"}], ["hello"], [{"content": "x"}]])
def test_bad_messages_are_a_usage_error(messages: Any) -> None:
    with pytest.raises(UsageError):
        ours("x").render(messages)


def test_rendering_does_not_change_the_messages() -> None:
    messages = [{"role": "user", "content": "a"}]
    ours("{% for message in messages %}{{ message.role }}{% endfor %}").render(messages)
    assert messages == [{"role": "user", "content": "a"}]
