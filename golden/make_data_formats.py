"""Rows of chats as JSON Lines and as the Parquet files that pyarrow makes of them, for the tests of sterna-data's formats.

Usage: python golden/make_data_formats.py        (pyarrow)

Writes tests/fixtures/formats/NAME.jsonl and NAME.parquet of crates/sterna-data. In the Parquet files every struct of a column has the
fields of all rows: the parameters of one tool appear, as nulls, in every other tool. What the rows have to become is in the tests.
"""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq

OUT = os.path.join(
    os.path.dirname(__file__), "..", "crates", "sterna-data", "tests", "fixtures", "formats"
)


def tool(name, properties):
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def call(name, arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


ROWS = {
    "tools": [
        {
            "tools": [tool("depth", {"lake": {"type": "string"}})],
            "messages": [
                {"role": "user", "content": "How deep is Como?"},
                {"role": "assistant", "content": None, "tool_calls": [call("depth", {"lake": "Como"})]},
                {"role": "tool", "content": "410"},
                {"role": "assistant", "content": "410 m."},
            ],
        },
        {
            "tools": [tool("add", {"a": {"type": "number"}, "b": {"type": "number"}})],
            "messages": [
                {"role": "user", "content": "2 + 3?"},
                {"role": "assistant", "content": "Let me see.", "tool_calls": [call("add", {"a": 2, "b": 3})]},
                {"role": "tool", "content": "5"},
                {"role": "assistant", "content": "5."},
            ],
        },
        {"tools": None, "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]},
    ],
    "sharegpt": [
        {
            "system": "Be brief.",
            "tools": json.dumps([tool("depth", {"lake": {"type": "string"}})]),
            "conversations": [
                {"from": "human", "value": "How deep is Como?"},
                {"from": "function_call", "value": '{"name": "depth", "arguments": {"lake": "Como"}}'},
                {"from": "observation", "value": "410"},
                {"from": "gpt", "value": "410 m."},
            ],
        },
        {"system": "", "tools": "", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]},
    ],
    "alpaca": [
        {"instruction": "Add.", "input": "2 3", "output": "5", "system": "Be brief.", "history": [["hi", "ho"]]},
        {"instruction": "Sing.", "input": "", "output": "La.", "system": None, "history": []},
    ],
    "tokens": [
        {"input_ids": [19556, 905, 28, 2], "labels": [-100, -100, 28, 2], "attention_mask": [1, 1, 1, 1]},
        {"input_ids": [2, 2, 19556, 905], "labels": [-100, -100, 19556, 905], "attention_mask": [0, 0, 1, 1]},
    ],
}

os.makedirs(OUT, exist_ok=True)
for name, rows in ROWS.items():
    with open(os.path.join(OUT, f"{name}.jsonl"), "w", encoding="utf-8") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)
    pq.write_table(pa.Table.from_pylist(rows), os.path.join(OUT, f"{name}.parquet"))
