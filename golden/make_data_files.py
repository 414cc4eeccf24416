"""Golden values for how sterna-data finds and reads data files: what the datasets library itself finds and reads.

Usage: python golden/make_data_files.py        (datasets 5.2.0, pyarrow, zstandard)

Writes tests/fixtures/layouts.json (which files of a folder are which split) and tests/fixtures/files/ (rows in formats, compressions and
column types, with the rows as Python has them in rows.json) of crates/sterna-data.
"""

import datetime
import decimal
import gzip
import json
import os
import shutil
import sys
import tempfile

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

OUT = os.path.join(os.path.dirname(__file__), "..", "crates", "sterna-data", "tests", "fixtures")

VERSION = "5.2.0"


def dump(name, value):
    with open(os.path.join(OUT, name), "w", encoding="utf-8") as f:
        json.dump(value, f, indent=1, ensure_ascii=False)
        f.write("\n")


def readme(configs, newline="\n"):
    return newline.join(["---", "license: mit", *configs, "---", "# Chats", "", "--- not a head", ""])


ONE = ["configs:", "- config_name: one", "  data_files: x/*.jsonl"]
TWO_DIRS = ["configs:", "- config_name: en", "  data_dir: en", "- config_name: fr", "  data_dir: fr", "  default: true"]
LAYOUTS = [
    # Names of folders and files.
    {"files": ["a.jsonl", "b.jsonl", "sub/c.jsonl"]},
    {"files": ["train.jsonl", "test.jsonl", "valid.jsonl"]},
    {"files": ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "test-00000-of-00001.jsonl"]},
    {"files": ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/dev-00000-of-00001.jsonl", "data/x.jsonl"]},
    {"files": ["data/zeta-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl", "data/train-00000-of-00001-0a1b.jsonl", "data/alpha-00000-of-00001.jsonl"]},
    {"files": ["train/a.jsonl", "test/a.jsonl", "dev/a.jsonl", "other/a.jsonl"]},
    {"files": ["data/train/a.jsonl", "data/eval/b.jsonl"]},
    {"files": ["my_train_set/a.jsonl", "my_test_set/a.jsonl"]},
    {"files": ["training.jsonl", "evaluation.jsonl"]},
    {"files": ["my-train-1.jsonl", "my-test-1.jsonl", "latest.jsonl"]},
    {"files": ["trainer.jsonl", "contest.jsonl"]},
    {"files": ["train1.jsonl", "val2.jsonl"]},
    {"files": ["Train.jsonl", "TEST.jsonl"]},
    {"files": ["train_test.jsonl", "b.jsonl"]},
    {"files": [".hidden/train.jsonl", "__pycache__/x.jsonl", "a.jsonl", ".b.jsonl", "__c.jsonl"]},
    {"files": ["config.json", "dataset_info.json", "rows.json"]},
    # The most common format.
    {"files": ["a.jsonl", "b.jsonl", "c.parquet"]},
    {"files": ["a.jsonl", "b.parquet"]},
    {"files": ["a.jsonl", "b.json", "c.parquet", "d.parquet", "e.ndjson"]},
    {"files": ["train-0.jsonl", "train-1.jsonl.gz", "train-2.jsonl.zst"]},
    {"files": ["a.jsonl.gz", "b.json.gz"]},
    # README.
    {"files": ["x/1.jsonl", "y/2.jsonl"], "readme": readme(ONE)},
    {"files": ["x/1.jsonl", "y/2.jsonl"], "readme": readme(ONE, "\r\n")},
    {"files": ["x/1.jsonl", "y/2.jsonl"], "readme": "\n\n" + readme(ONE)},
    {"files": ["x/1.jsonl", "y/2.jsonl"], "readme": "# Chats\n" + readme(ONE)},
    {"files": ["x/1.jsonl", "y/2.jsonl"], "readme": readme(ONE)[:60]},
    {"files": ["en/a.jsonl", "fr/a.jsonl"], "readme": readme(TWO_DIRS)},
    {"files": ["en/a.jsonl", "fr/a.jsonl"], "readme": readme(TWO_DIRS, "\r\n"), "name": "en"},
    {"files": ["en/train.jsonl", "en/test.jsonl", "fr/a.jsonl"], "readme": readme(TWO_DIRS), "name": "en"},
    {"files": ["en/a.jsonl", "fr/a.jsonl"], "readme": readme(TWO_DIRS), "name": "de"},
    {"files": ["en/a.jsonl", "fr/a.jsonl"], "readme": readme(TWO_DIRS[:-1])},
    {"files": ["en/x/a.jsonl", "en/y/a.jsonl", "x/a.jsonl"],
     "readme": readme(["configs:", "- config_name: default", "  data_dir: en", "  data_files:", "  - split: train", "    path: x/*"])},
    {"files": ["x/1.jsonl", "y/2.jsonl", "z/3.jsonl"],
     "readme": readme(["configs:", "- config_name: default", "  data_files:", "  - split: train", "    path:", "    - y/*", "    - x/1.jsonl", "  - split: test_1", "    path: z/**"])},
    {"files": ["x/1.jsonl", "y/2.jsonl", "z/3.jsonl"],
     "readme": readme(["configs:", "- config_name: default", "  data_files:", "  - z/*", "  - x/*"])},
    {"files": ["x/1.jsonl", "x/2.jsonl", "x/a3.jsonl"],
     "readme": readme(["configs:", "- config_name: default", "  data_files: x/[0-9]*.jsonl"])},
    {"files": ["x/1.jsonl", "x/y/2.jsonl", "x/y/z/3.jsonl"],
     "readme": readme(["configs:", "- config_name: default", "  data_files: x/**/*.jsonl"])},
    {"files": ["x/1.jsonl", "x/y/2.jsonl"], "readme": readme(["configs:", "- config_name: default", "  data_files: x/**"])},
    {"files": ["train.jsonl", "test.jsonl"], "readme": readme(["task_categories:", "- text-generation"])},
    {"files": ["train.jsonl", "test.jsonl"], "readme": readme(["configs:", "- config_name: default", "  drop_labels: true"])},
    {"files": ["train.jsonl", "x.jsonl"], "readme": readme(["configs:", "- config_name: a", "  default: true", "  data_files: x.jsonl", "- config_name: default", "  data_files: train.jsonl"])},
    {"files": ["x.jsonl"], "readme": readme(["configs:", "- config_name: a", "  data_files: nothing*.jsonl"])},
    {"files": ["data/train-00000-of-00002-ab.jsonl", "data/train-00001-of-00002-cd.jsonl", "data/test-00000-of-00001.jsonl", "old/train-1.jsonl"],
     "readme": readme(["configs:", "- config_name: default", "  data_files:", "  - split: train", "    path: data/train-*", "  - split: test", "    path: data/test-*"])},
    {"files": ["a/1.jsonl", "a/b/2.jsonl", "3.jsonl", ".git/4.jsonl"],
     "readme": readme(["configs:", "- config_name: default", "  data_files: '**/*.jsonl'"])},
    {"files": ["a/1.jsonl", "a/22.jsonl"], "readme": readme(["configs:", "- config_name: default", "  data_files: a/?.jsonl"])},
    {"files": ["a/1.jsonl", "b/1.jsonl"], "readme": readme(["configs:", "- config_name: default", "  data_files:", "  - split: train", "    path: ./a/*", "  - split: dev.1", "    path: b/*"])},
    {"files": ["a/1.jsonl", "a/1.jsonl.gz", "b/2.parquet"], "readme": readme(["configs:", "- config_name: default", "  data_files: a/*"])},
    {"files": ["a/1.jsonl"], "readme": readme(["configs:", "- config_name: default", "  data_files: a/1.jsonl", "- config_name: &x other", "  data_files: a/*.jsonl"]), "name": "other"},
    {"files": ["a/1.jsonl"], "readme": readme(["configs:", "- config_name: default", "  data_files: {train: a/1.jsonl}"])},
    {"files": ["a/1.jsonl"], "readme": readme(["configs:", "- data_files: a/1.jsonl"])},
    {"files": ["a/1.jsonl", "b/2.jsonl"], "readme": readme(["configs:", "- config_name: default", "  data_files:", "  - split: train", "    path: a/*", "  - split: train", "    path: b/*"])},
    {"files": ["a.jsonl", "b.jsonl"], "readme": readme(["configs: []"])},
    # Arguments.
    {"files": ["a/1.jsonl", "b/2.jsonl"], "data_files": ["a/1.jsonl", "a/*.jsonl"]},
    {"files": ["a/1.jsonl", "b/2.jsonl"], "data_files": "c/*"},
    {"files": ["en/train.jsonl", "en/test.jsonl", "train.jsonl"], "data_dir": "en"},
    {"files": ["a.jsonl", "b.jsonl"], "data_files": "b.jsonl"},
    {"files": ["a.jsonl", "b.jsonl", "c.jsonl"], "data_files": ["c.jsonl", "a*"]},
    {"files": ["a.jsonl", "b.jsonl"], "data_files": {"train": "b.jsonl", "held_out": ["a.jsonl"]}},
    {"files": ["en/a.jsonl", "a.jsonl"], "data_dir": "en", "data_files": "a.jsonl"},
]


def layouts():
    cases = []
    for layout in LAYOUTS:
        with tempfile.TemporaryDirectory() as root:
            for name in layout["files"]:
                path = os.path.join(root, name)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "w", encoding="utf-8") as f:
                    f.write('{"a": 1}\n')
            if "readme" in layout:
                with open(os.path.join(root, "README.md"), "w", encoding="utf-8", newline="") as f:
                    f.write(layout["readme"])
            arguments = {key: layout[key] for key in ("name", "data_dir", "data_files") if key in layout}
            try:
                builder = datasets.load_dataset_builder(root, cache_dir=os.path.join(root, ".cache"), **arguments)
            except (ValueError, FileNotFoundError) as error:
                cases.append({**layout, "splits": None, "error": type(error).__name__})
                continue
            found = builder.config.data_files
            splits = [[str(split), [os.path.relpath(path, os.path.realpath(root)) for path in paths]] for split, paths in found.items()]
            cases.append({**layout, "splits": splits})
    dump("layouts.json", {"datasets": datasets.__version__, "cases": cases})


def natural(value):
    """The JSON form of a value, with what has none left out of structs and null in lists."""
    if isinstance(value, dict):
        return {k: natural(v) for k, v in value.items()}
    if isinstance(value, list):
        return [natural(v) for v in value]
    if isinstance(value, (datetime.date, datetime.datetime, datetime.time)):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, bytes):
        return value.decode()
    return value


def typed():
    """Columns of every type that Parquet and Arrow have and JSON has not."""
    utc = datetime.timezone.utc
    moments = [
        datetime.datetime(2024, 2, 29, 23, 59, 59, 123456), datetime.datetime(1969, 12, 31, 0, 0, 0), datetime.datetime(1, 1, 1),
        datetime.datetime(9999, 12, 31, 23, 59, 59, 999999), datetime.datetime(1900, 3, 1, 12, 0, 0, 500000), None,
    ]
    days = [None if moment is None else moment.date() for moment in moments]
    table = pa.table({
        "messages": pa.array(
            [[{"role": "user", "content": f"hi {i}", "timestamp": moment}, {"role": "assistant", "content": None, "timestamp": None}] for i, moment in enumerate(moments)],
            pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("timestamp", pa.timestamp("us"))])),
        ),
        "us": pa.array(moments, pa.timestamp("us")),
        "ms": pa.array([m and m.replace(microsecond=m.microsecond // 1000 * 1000) for m in moments], pa.timestamp("ms")),
        "s": pa.array([m and m.replace(microsecond=0) for m in moments], pa.timestamp("s")),
        "utc": pa.array([m and m.replace(tzinfo=utc) for m in moments], pa.timestamp("us", "UTC")),
        "offset": pa.array([None if m is None or m.year in (1, 9999) else m.replace(tzinfo=utc) for m in moments], pa.timestamp("us", "+05:30")),
        "date32": pa.array(days, pa.date32()),
        "date64": pa.array(days, pa.date64()),
        "time32": pa.array([m and m.time().replace(microsecond=m.microsecond // 1000 * 1000) for m in moments], pa.time32("ms")),
        "time64": pa.array([m and m.time() for m in moments], pa.time64("us")),
        "decimal": pa.array([decimal.Decimal(x) if x else None for x in ["1.50", "-0.05", "123456789012345678901234567.89", "0.00", "-7.00", None]], pa.decimal128(38, 2)),
        "wide": pa.array([decimal.Decimal(x) for x in ["1", "-2", "3", "4", "5", "6"]], pa.decimal256(50, 0)),
        "binary": pa.array(["text", "", "日本", "x", "y", None], pa.string()).cast(pa.binary()),
        "half": pa.array([0.5, 1.25, -2.0, 0.0, 65504.0, None], pa.float16()),
        "map": pa.array([[("a", 1), ("b", None)], [], [("z", 3)], None, [("a", 1)], [("b", 2)]], pa.map_(pa.string(), pa.int64())),
        "codes": pa.array([[(1, "a")], [], [(3, "c"), (2, "b")], None, [(1, "a")], [(2, "b")]], pa.map_(pa.int64(), pa.string())),
        "dictionary": pa.array(["x", "y", "x", None, "y", "x"]).dictionary_encode(),
        "large": pa.array(["a", "b", None, "d", "e", "f"], pa.large_string()),
        "pair": pa.array([[1, 2], [3, 4], None, [5, 6], [7, 8], [9, 10]], pa.list_(pa.int64(), 2)),
    })
    rows = []
    for row in table.to_pylist():
        row = natural(row)
        row["map"] = None if row["map"] is None else dict(row["map"])
        row["codes"] = None if row["codes"] is None else [list(pair) for pair in row["codes"]]
        # The null timestamp of the second message is one that the row need not have had; a null content is kept.
        for message in row["messages"]:
            if message["timestamp"] is None:
                del message["timestamp"]
        rows.append(row)
    return table, rows


def calls():
    """Rows whose structs differ: what the datasets library makes of them has every field everywhere."""
    tool = lambda name, properties, **rest: {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties, **rest}}}
    rows = [
        {"messages": [{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "weather", "arguments": {"city": "Rome"}}}]}],
         "tools": [tool("weather", {"city": {"type": "string"}}, required=["city"])]},
        {"messages": [{"role": "user", "content": "Sum?"}, {"role": "assistant", "content": "3", "reasoning_content": "1+2"}],
         "tools": [tool("add", {"x": {"type": "number"}, "y": {"type": "number", "description": "second"}}), tool("none", {})]},
        {"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "ok"}], "tools": []},
    ]
    return rows


def files():
    folder = os.path.join(OUT, "files")
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    path = lambda name: os.path.join(folder, name)
    table, typed_rows = typed()
    pq.write_table(table.drop_columns(["date64", "wide"]), path("types.parquet"))
    with pa.ipc.new_stream(path("types.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    with pa.ipc.new_file(path("types-file.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    odd = pa.table({
        "id": [1, 2],
        "image": pa.array([b"\xff\xd8\xff", b"\x89PNG"], pa.binary()),
        "took": pa.array([datetime.timedelta(seconds=1), None], pa.duration("us")),
        "message": pa.array([{"text": "a", "took": datetime.timedelta(days=1)}, {"text": None, "took": None}], pa.struct([("text", pa.string()), ("took", pa.duration("us"))])),
    })
    with pa.ipc.new_stream(path("odd.arrow"), odd.schema) as writer:
        writer.write_table(odd)

    # Of rows whose fields have more than one type the datasets library keeps these as JSON text of an extension type.
    call_rows = calls()
    mixed_rows = [{"call": {"arguments": {"x": 1}}}, {"call": {"arguments": {"x": "one", "y": [1, None]}}}, {"call": {"arguments": {"x": [1.5]}}}]
    for name, rows in [("calls", call_rows), ("mixed", mixed_rows)]:
        with open(path(name + ".jsonl"), "w", encoding="utf-8") as f:
            f.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with tempfile.TemporaryDirectory() as cache:
            loaded = datasets.load_dataset("json", data_files=path(name + ".jsonl"), split="train", cache_dir=cache)
            loaded.to_parquet(path(name + ".parquet"))
            loaded.save_to_disk(path(name))

    plain_rows = [{"id": i, "text": f"row {i} \u2028 日本", "x": x} for i, x in enumerate([0.1, 1e-7, 123456789.123456789, 5e-324, -2.5])]
    plain = pa.Table.from_pylist(plain_rows)
    for codec in ["none", "snappy", "gzip", "zstd", "lz4", "brotli"]:
        pq.write_table(plain, path(f"{codec}.parquet"), compression=codec)
    for codec in ["zstd", "lz4"]:
        with pa.ipc.new_stream(path(f"{codec}.arrow"), plain.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
            writer.write_table(plain)
    # One text of a megabyte in 300 rows, in a file of a few kilobytes.
    pq.write_table(pa.table({"a": ["x" * (1 << 20)] * 300}), path("repeated.parquet"), compression="zstd")
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in plain_rows).encode()
    whole = json.dumps(plain_rows, ensure_ascii=False, indent=1).encode()
    for name, content in [("lines.jsonl", lines), ("whole.json", whole)]:
        with open(path(name + ".gz"), "wb") as f:
            # Two members, as `cat a.gz b.gz` and pigz write them.
            f.write(gzip.compress(content[:100], mtime=0) + gzip.compress(content[100:], mtime=0))
        with open(path(name + ".zst"), "wb") as f:
            f.write(zstandard.compress(content[:100]) + zstandard.compress(content[100:]))
    dump("files/rows.json", {"types": typed_rows, "calls": call_rows, "mixed": mixed_rows, "plain": plain_rows})
    # Of lists datasets rounds the numbers (ujson), so these rows are those of json.dumps.
    with tempfile.TemporaryDirectory() as cache:
        loaded = datasets.load_dataset("json", data_files=path("lines.jsonl.gz"), split="train", cache_dir=cache)
        assert loaded.to_list() == plain_rows


def main():
    if datasets.__version__ != VERSION:
        sys.exit(f"datasets {datasets.__version__}, required: {VERSION}")
    datasets.disable_progress_bars()
    layouts()
    files()


if __name__ == "__main__":
    main()
