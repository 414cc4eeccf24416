"""Makes crates/sterna-hf/tests/fixtures/chat.json: chat templates as transformers renders them.

Every template of tests/fixtures/chat and every snippet below is rendered with every conversation,
without and with a generation prompt. No randomness, no clock. Run with transformers 4.57 and
jinja2 3.1:

    python golden/make_hf_chat.py
"""

import json
import pathlib

import jinja2
import transformers
from transformers.utils.chat_template_utils import render_jinja_template

FIXTURES = pathlib.Path(__file__).parents[1] / "crates/sterna-hf/tests/fixtures"
SPECIAL_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
}


def turns(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


CONVERSATIONS = {
    "one turn": turns(("user", "Hello")),
    "answered": turns(("user", "Hello"), ("assistant", "Hi there!")),
    "system": turns(("system", "Be brief."), ("user", "What is 2+2?"), ("assistant", "4")),
    "multi-turn": turns(
        ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e"), ("assistant", "f")
    ),
    "whitespace": turns(("system", "  s \n"), ("user", "\n\n  padded\t \n"), ("assistant", " \n\n reply \n\n")),
    "blank": turns(("user", ""), ("assistant", ""), ("user", " "), ("assistant", "\n")),
    "unicode": turns(
        ("user", "日本語 — “quotes” é e\u0301 👩‍👩‍👧 \u00a0nbsp\u00a0"), ("assistant", "\u2003שלום ﷺ\u3000\x1f")
    ),
    "thinking": turns(
        ("user", "why?"),
        ("assistant", "<think>\nbecause\n\n</think>\n\nAnswer one"),
        ("user", "and?"),
        ("assistant", "<think>\nmore\n</think>\n\n\nAnswer two</think>x"),
    ),
    "tools": turns(
        ("user", "weather?"),
        ("assistant", '<tool_call>\n{"name": "w"}\n</tool_call>'),
        ("tool", '{"t": 20}'),
        ("tool", "second"),
        ("user", "<tool_response>x</tool_response>"),
        ("assistant", "It is 20."),
    ),
    "templating": turns(
        ("user", "{{ 7*7 }} {% if x %} {# c #} </s><|im_end|>"), ("assistant", "{% generation %} \\n \"q\" <b>&amp;</b>'")
    ),
    "modes": turns(("system", "Talk. /no_think"), ("user", "q\r\nline two"), ("assistant", "a\x0bb\x85c\u2028d")),
    "only system": turns(("system", "alone")),
    "wrong order": turns(("assistant", "first"), ("user", "second")),
    "empty": [],
}

SNIPPETS = {
    # Whitespace control, with and without trim_blocks' and lstrip_blocks' help.
    "blocks on lines": "a\n  {% if true %}\n  b\n  {% endif %}\n  c\n",
    "blocks in lines": "a {% if true %} b {% endif %} c",
    "minus": "a \n {%- if true -%} \n b \n {%- endif -%} \n c",
    "plus": "a\n  {%+ if true +%}\n  b\n  {%+ endif %}\n  c",
    "comments": "a\n  {# note #}\n  b {#- x -#}  c\n{# last #}\n",
    "expressions keep lines": "a\n  {{ 'x' }}\n  {{- 'y' -}}\n  b\n\n",
    "raw": "{% raw %}\n{{ x }} {% generation %}\n{% endraw %}\nz",
    "raw in a line": "a {% raw %} {{ x }} {% endraw %} b{% raw %}{% endraw %}\n{%+ raw %}\n{% endraw +%}\nc",
    "raw, trimmed": "a {%- raw -%} {{ x }} {%- endraw -%} b",
    "crlf": "a\r\n  {% if true %}\r\n  b\r\n  {% endif %}\r\nc\r\n",
    "cr in strings": "{{ 'a\rb\r\nc' }}\r\r\n\n\r",
    "last newline": "x\n\n",
    "generation on lines": "a\n  {% generation %}\n  b\n  {% endgeneration %}\n  c\n",
    "generation in lines": "a {% generation %} b {% endgeneration %} c",
    "generation, minus": "a \n {%- generation -%} \n b \n {%- endgeneration -%} \n c",
    "generation, plus": "a\n  {%+ generation +%}\n  b\n  {%+ endgeneration %}\n  c",
    "generation has its scope": "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
    "generation sees the loop": "{% for m in messages %}{% generation %}{{ loop.index }}{{ m.role }}{% endgeneration %}{% endfor %}",
    # Values as Python prints them.
    "printing": "{{ true }} {{ false }} {{ none }} {{ 1 }} {{ 1.0 }} {{ 1.5 }} {{ 'a' }} {{ undefined_name }}|",
    "printing joined": "{{ 'a' ~ true ~ none ~ 1 ~ 2.5 }}",
    "lists": "{{ [1, 'a', true, none, 2.0] }} {{ [] }}",
    "dicts": "{{ {'a': 1, 'b': ['x']} }} {{ {} }}",
    "messages": "{{ messages }}",
    "arithmetic": "{{ 7 // 2 }} {{ 7 / 2 }} {{ 7 % 3 }} {{ 2 ** 5 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 'ab' * 3 }}",
    "comparisons": "{{ 1 == 1.0 }} {{ 'a' < 'b' }} {{ 1 in [1] }} {{ 'b' in 'abc' }} {{ 'k' in {'k': 1} }} {{ not '' }} {{ [] or 'x' }} {{ 'a' and 'b' }}",
    "slices": "{{ 'abcdef'[1:3] }} {{ 'abcdef'[-2:] }} {{ 'abcdef'[::-1] }} {{ 'héllo'[1] }} {{ [1,2,3,4][::2] }} {{ [1,2,3][-1] }}",
    "inline if": "{{ 'a' if messages else 'b' }}{{ 'c' if false }}|",
    # json.dumps.
    "tojson": "{{ messages | tojson }}",
    "tojson, indent": "{{ {'a': [1, 2.5, {'b': none}], 'c': {}, 'd': []} | tojson(indent=2) }}",
    "tojson, options": "{{ {'b': 'é😀', 'a': true} | tojson(ensure_ascii=true, sort_keys=true, separators=(',', ':')) }}",
    "tojson, escapes": "{{ '\"\\\\/<&>\\'\\t\\u0001\\u007f' | tojson }}",
    # Methods of str and dict.
    "strip": "{% for m in messages %}[{{ m.content.strip() }}][{{ m.content.lstrip() }}][{{ m.content.rstrip() }}][{{ m.content | trim }}]{% endfor %}",
    "strip characters": "{{ 'xxabxx'.strip('x') }} {{ '\\n\\na'.lstrip('\\n') }} {{ 'abcba'.rstrip('ab') }}",
    "split": "{{ 'a,b,c'.split(',') }} {{ 'a,b,c'.split(',', 1) }} {{ ' a  b '.split() }} {{ ' a  b  c '.split(None, 1) }} {{ ''.split() }} {{ ''.split(',') }} {{ 'aXXb'.split('X') }}",
    "rsplit": "{{ 'a,b,c'.rsplit(',', 1) }} {{ ' a  b  c '.rsplit(None, 1) }}",
    "splitlines": "{% for m in messages %}{% for line in m.content.splitlines() %}<{{ line }}>{% endfor %}{% endfor %}",
    "prefixes": "{{ 'abc'.startswith('ab') }} {{ 'abc'.endswith(('x', 'bc')) }} {{ 'abc'.removeprefix('a') }} {{ 'abc'.removesuffix('x') }} {{ 'abc'.removesuffix('c') }}",
    "case": "{{ 'aBc dE'.upper() }} {{ 'ABC'.lower() }} {{ 'hello world'.title() }} {{ 'hELLO'.capitalize() }} {{ 'x' | upper }} {{ 'éa' | capitalize }}",
    "find": "{{ 'héllo'.find('l') }} {{ 'abc'.find('x') }} {{ 'abcb'.rfind('b') }} {{ 'abcb'.count('b') }} {{ 'aaa'.replace('a', 'b', 2) }}",
    "format": "{{ '{} and {}'.format('a', 1) }} {{ '%s-%d' | format('x', 3) }}",
    "join": "{{ ', '.join(['a', 'b']) }} {{ ['a', 'b'] | join('-') }} {{ messages | map(attribute='role') | join(' ') }}",
    "dict methods": "{% set d = {'a': 1, 'b': 2} %}{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{{ d.get('a') }}{{ d.get('z', 'no') }}{{ d.get('z') }}{{ d.keys() | list }}{{ d.values() | list }}{{ d | items | list }}",
    "partition": "{{ 'a=b=c'.partition('=')[2] }} {{ 'a=b=c'.rpartition('=')[0] }} {{ 'abc'.partition('x')[0] }}",
    # Filters and tests.
    "filters": "{{ [3,1,2] | sort | list }} {{ [1,2,3] | sum }} {{ [1,2] | length }} {{ 'abc' | first }} {{ [1,2,3] | last }} {{ 'a b' | replace(' ', '_') }} {{ x | default('d') }} {{ 3.7 | int }} {{ '5' | int + 1 }} {{ [1,1,2] | unique | list }} {{ 'abc' | reverse }} {{ [1,2] | min }} {{ -3 | abs }}",
    "indent": "{{ 'a\\nb\\n\\nc' | indent(2) }}|{{ 'a\\nb' | indent(2, true) }}",
    "selecting": "{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ messages | rejectattr('role', 'in', ['user']) | map(attribute='content') | list | length }}",
    "tests": "{{ 'a' is string }} {{ 1 is number }} {{ {} is mapping }} {{ [] is iterable }} {{ 'a' is iterable }} {{ 'a' is sequence }} {{ [] is sequence }} {{ {} is sequence }} {{ 1 is iterable }} {{ none is none }} {{ x is defined }} {{ x is undefined }} {{ 2 is even }} {{ 3 is odd }} {{ true is boolean }} {{ 1 is integer }} {{ 1.0 is float }} {{ 'a' is in ['a'] }} {{ 4 is divisibleby 2 }} {{ true is true }} {{ false is false }}",
    # Statements.
    "loop": "{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.cycle('a', 'b') }}{% if loop.previtem is defined %}{{ loop.previtem.role }}{% endif %};{% else %}none{% endfor %}",
    "loop control": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.role }} {% endfor %}",
    "loop filter": "{% for m in messages if m.role == 'user' %}{{ loop.index }}{{ m.content | length }} {% endfor %}",
    "scope of loops": "{% set x = 0 %}{% for m in messages %}{% set x = x + 1 %}{% endfor %}{{ x }}",
    "namespace": "{% set ns = namespace(n=0, seen=[]) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% set ns.seen = ns.seen + [m.role] %}{% endfor %}{{ ns.n }} {{ ns.seen }}",
    "macro": "{% macro turn(m, sep='|') -%}\n  {{ m.role }}{{ sep }}\n{%- endmacro %}{% for m in messages %}{{ turn(m) }}{{ turn(m, sep='/') }}{% endfor %}",
    "call": "{% macro wrap() %}<{{ caller() }}>{% endmacro %}{% call wrap() %}in{% endcall %}",
    "set block": "{% set text %}\n  a {{ 1 + 1 }}\n{% endset %}[{{ text }}]",
    "filter block": "{% filter upper %}abc {{ 'd' }}{% endfilter %}",
    "with": "{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}",
    "range": "{{ range(3) | list }} {% for i in range(1, 6, 2) %}{{ i }}{% endfor %}",
    "unpacking": "{% for a, b in [[1, 2], [3, 4]] %}{{ a }}-{{ b }} {% endfor %}",
    "special tokens": "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token is defined }}{{ additional_special_tokens[0] }}",
    "nothing given": "{{ tools is defined }}{{ tools is none }}{{ documents is none }}{{ documents }}{{ add_generation_prompt }}",
    "functions exist": "{{ strftime_now is defined }}{{ raise_exception is defined }}",
    "raise": "{{ raise_exception('no: ' ~ messages | length) }}",
    "attribute of undefined": "{{ x.y.z }}",
    "sandbox": "{{ messages.append('x') }}",
    "private": "{{ ''.__class__ }}|{{ messages.__class__.__mro__ }}",
    "adding text and none": "{{ 'a' + none }}",
}


def render(template, messages, add_generation_prompt):
    try:
        rendered, _ = render_jinja_template(
            [messages], chat_template=template, add_generation_prompt=add_generation_prompt, **SPECIAL_TOKENS
        )
        return {"text": rendered[0]}
    except jinja2.TemplateError as error:
        return {"error": type(error).__name__, "message": str(error)}
    except TypeError as error:
        return {"error": type(error).__name__, "message": str(error)}


def main():
    templates = {path.stem: path.read_text() for path in sorted((FIXTURES / "chat").glob("*.jinja"))}
    cases = []
    for name, source in templates.items():
        for conversation, messages in CONVERSATIONS.items():
            for prompt in (False, True):
                # Half of them twice is enough.
                if prompt and conversation in ("blank", "unicode", "whitespace", "templating", "modes"):
                    continue
                case = {"template": name, "conversation": conversation, "add_generation_prompt": prompt}
                cases.append(case | render(source, messages, prompt))
    for name, source in SNIPPETS.items():
        for conversation in ("system", "whitespace", "modes"):
            if conversation != "system" and "messages" not in source:
                continue
            if name == "messages" and conversation == "modes":
                continue  # Python's repr escapes U+2028, minijinja's does not.
            case = {"template": name, "conversation": conversation, "add_generation_prompt": False}
            cases.append(case | render(source, CONVERSATIONS[conversation], False))
    out = {
        "transformers": transformers.__version__,
        "jinja2": jinja2.__version__,
        "special_tokens": SPECIAL_TOKENS,
        "conversations": CONVERSATIONS,
        "snippets": SNIPPETS,
        "cases": cases,
    }
    text = json.dumps(out, ensure_ascii=False, separators=(",", ":")).replace('{"template"', '\n{"template"')
    (FIXTURES / "chat.json").write_text(text + "\n")


main()
