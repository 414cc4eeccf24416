//! Files as datasets wrote them (`golden/make_data_reference.py`, `golden/make_data_files.py`), split expressions as it reads them, and what is refused.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};
use sterna_data::{
    Error,
    source::{OpenSource, SplitSpec, Wanted},
};
use sterna_recipe::{RolePath, Sampling, Source, SourceType, UnmappedRoles};

use crate::support::{fixture, fixture_path};

fn source(path: &Path, split: &str) -> Source {
    let columns = ["id", "score", "flag", "note", "messages"];
    Source {
        kind: SourceType::HuggingFaceInstruct,
        name_or_path: path.to_str().unwrap().to_owned(),
        split: split.to_owned(),
        kwargs: Map::new(),
        role_mapping: columns
            .map(|column| (column.to_owned(), RolePath::Column(column.to_owned())))
            .to_vec(),
        content_key: None,
        sample: Sampling::All,
        format: None,
        unmapped_roles: UnmappedRoles::Refuse,
        messages_key: None,
        tools_key: None,
        text_key: None,
        sample_seed: 42,
        epochs: 1.0,
        weight: None,
    }
}

fn rows(source: &Source) -> Result<Vec<Value>, Error> {
    let rows = OpenSource::find(source)?.read(&Wanted::mapped(source))?;
    (0..rows.len()).map(|i| rows.row(i).map(Value::Object)).collect()
}

#[test]
fn every_format_gives_the_same_rows() {
    let golden = fixture("sources/rows.json");
    let golden = golden.as_array().unwrap();
    let folder = fixture_path("sources");
    for (path, split, expected) in [
        ("saved", "train", golden[..].to_vec()),
        ("saved", "whatever[2:5]", golden[2..5].to_vec()),
        ("saved_dict", "train", golden[..].to_vec()),
        ("saved_dict", "test", vec![golden[9].clone(), golden[2].clone(), golden[4].clone()]),
        (
            "saved_dict",
            "test[1:]+train[:1]",
            vec![golden[2].clone(), golden[4].clone(), golden[0].clone()],
        ),
        ("saved_dict/train", "train", golden[..].to_vec()),
        ("parquet", "train", golden[..].to_vec()),
        ("parquet", "test", golden[..4].to_vec()),
        ("parquet/train.parquet", "train[-2:]", golden[9..].to_vec()),
        ("json", "train", golden[..].to_vec()),
        ("json/train.jsonl", "train", golden[..].to_vec()),
        ("json", "validation", golden[3..6].to_vec()),
        ("json", "valid", golden[3..6].to_vec()),
        ("json/validation.json", "eval", golden[3..6].to_vec()),
        ("json", "all", [&golden[..], &golden[3..6]].concat()),
        ("saved/data-00001-of-00003.arrow", "train", golden[4..8].to_vec()),
    ] {
        let rows = rows(&source(&folder.join(path), split)).unwrap();
        assert_eq!(rows, expected, "{path}:{split}");
    }
}

#[test]
fn split_expressions_are_those_of_datasets() {
    let golden = fixture("splits.json");
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 45);
    for case in cases {
        let spec = case["spec"].as_str().unwrap();
        let ranges = SplitSpec::parse(spec).and_then(|parsed| {
            let pieces = parsed.pieces().iter().map(|piece| {
                // datasets fails on a name it does not know; the caller of SplitSpec does the same.
                let rows = golden["lengths"][&piece.name].as_u64().unwrap() as usize;
                Ok((piece.name.clone(), parsed.range(piece, rows)?))
            });
            pieces.collect::<Result<Vec<_>, _>>()
        });
        match case["pieces"].as_array() {
            None => assert!(ranges.is_err(), "`{spec}` was accepted"),
            Some(pieces) => {
                for ((name, range), golden) in ranges.unwrap().iter().zip(pieces) {
                    let (from, to) = (
                        golden[1].as_u64().unwrap() as usize,
                        golden[2].as_u64().unwrap() as usize,
                    );
                    assert_eq!(golden[0], **name, "{spec}");
                    // datasets leaves a range that ends before it starts as it is; it is empty.
                    assert_eq!(*range, from..to.max(from), "{spec}");
                }
            }
        }
    }
}

fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn splits_are_found_by_folder_and_file_names() {
    let folder = tempfile::tempdir().unwrap();
    let row = |id: usize| {
        json!({"id": id, "score": 0, "flag": true, "note": null, "messages": []}).to_string() + "\n"
    };
    let sharded = folder.path().join("sharded");
    write(&sharded, "data/train_sft-00000-of-00002.jsonl", &row(1));
    write(&sharded, "data/train_sft-00001-of-00002.jsonl", &row(2));
    write(&sharded, "data/test_sft-00000-of-00001.jsonl", &row(3));
    let folders = folder.path().join("folders");
    write(&folders, "train/a.jsonl", &row(4));
    write(&folders, "my-dev-set/train.jsonl", &row(5));
    let plain = folder.path().join("plain");
    write(&plain, "b.jsonl", &row(7));
    write(&plain, "a.jsonl", &row(6));
    write(&plain, "latest.jsonl", &row(8));
    write(&plain, ".hidden/train.jsonl", &row(9));
    let configured = folder.path().join("configured");
    write(&configured, "x/1.jsonl", &row(10));
    write(&configured, "y/2.jsonl", &row(11));
    let readme = "---\nlicense: mit\nconfigs:\n- config_name: one\n  data_files:\n  - split: train\n    path: x/*\n\
                  - config_name: two\n  default: true\n  data_files:\n  - split: train\n    path:\n    - y/*.jsonl\n---\n# Title\n";
    write(&configured, "README.md", readme);
    let ids = |path: &Path, split: &str, kwargs: Value| -> Result<Vec<u64>, Error> {
        let Value::Object(kwargs) = kwargs else { unreachable!() };
        let source = Source { kwargs, ..source(path, split) };
        Ok(rows(&source)?.iter().map(|row| row["id"].as_u64().unwrap()).collect())
    };
    assert_eq!(ids(&sharded, "train_sft", json!({})).unwrap(), [1, 2]);
    assert_eq!(ids(&sharded, "test_sft", json!({})).unwrap(), [3]);
    assert_eq!(ids(&folders, "train", json!({})).unwrap(), [4]);
    assert_eq!(ids(&folders, "validation", json!({})).unwrap(), [5]);
    assert_eq!(ids(&plain, "train", json!({})).unwrap(), [6, 7, 8]);
    assert_eq!(ids(&plain, "train", json!({"data_files": "b.*"})).unwrap(), [7]);
    assert_eq!(ids(&plain, "test", json!({"data_files": {"test": ["l*", "a*"]}})).unwrap(), [8, 6]);
    assert_eq!(ids(folder.path(), "train", json!({"data_dir": "plain"})).unwrap(), [6, 7, 8]);
    assert_eq!(ids(&configured, "train", json!({})).unwrap(), [11]);
    assert_eq!(ids(&configured, "train", json!({"name": "one"})).unwrap(), [10]);
    let error = ids(&configured, "train", json!({"name": "three"})).unwrap_err().to_string();
    assert!(error.ends_with("has no configuration `three`, available: `one`, `two`"), "{error}");
    let error = ids(&plain, "train", json!({"data_files": "z*"})).unwrap_err().to_string();
    assert!(error.starts_with("data_files `z*` matches no file in"), "{error}");
    let error = ids(&sharded, "train", json!({})).unwrap_err().to_string();
    assert!(error.ends_with("has no split `train`, available: `test_sft`, `train_sft`"), "{error}");
}

#[test]
fn errors_name_the_file_and_the_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let error = |path: &Path| {
        let error = rows(&source(path, "train")).unwrap_err();
        error.to_string().replace(folder.path().to_str().unwrap(), "DIR")
    };
    let good = r#"{"id": 1, "score": 0, "flag": true, "note": "", "messages": []}"#;

    assert_eq!(error(&path("none.jsonl")), "data source `DIR/none.jsonl` not found");
    let bad_line = write(folder.path(), "bad.jsonl", &format!("{good}\n\n{{\"id\": 2,}}\n"));
    assert_eq!(error(&bad_line), "`DIR/bad.jsonl:3` is not valid JSON");
    let marked = write(folder.path(), "marked.jsonl", &format!("\u{feff}{good}\n"));
    assert_eq!(rows(&source(&marked, "train")).unwrap().len(), 1);
    let no_row = write(folder.path(), "list.jsonl", &format!("{good}\n[1]\n"));
    assert_eq!(
        error(&no_row),
        "`DIR/list.jsonl:2` holds a list, required: one object on each line"
    );
    let no_list = write(folder.path(), "numbers.json", "[\n1, 2]");
    assert_eq!(error(&no_list), "`DIR/numbers.json:1` holds a number, required: a list of objects");
    let cut = write(folder.path(), "cut.json", &format!("[{good},\n{{\"id\""));
    assert_eq!(error(&cut), "`DIR/cut.json:2` is not valid JSON");
    let empty = write(folder.path(), "empty.jsonl", "\n");
    assert_eq!(error(&empty), "source `DIR/empty.jsonl` gives no row for split `train`");
    let other = write(folder.path(), "other.jsonl", "{\"a\": 1}\n{\"b\": 1}\n");
    assert_eq!(
        error(&other),
        "source `DIR/other.jsonl` has no column `id`, which the recipe or its format names; available: `a`, `b`"
    );
    fs::create_dir(path("nothing")).unwrap();
    assert_eq!(
        error(&path("nothing")),
        "`DIR/nothing` has no data file, required: a .json, .jsonl or .ndjson (also with .gz or .zst), .parquet or .arrow file"
    );

    let parquet = fs::read(fixture_path("sources/parquet/train.parquet")).unwrap();
    fs::write(path("cut.parquet"), &parquet[..parquet.len() - 7]).unwrap();
    assert_eq!(error(&path("cut.parquet")), "`DIR/cut.parquet` cannot be read as Parquet");
    let arrow = fs::read(fixture_path("sources/saved/data-00000-of-00003.arrow")).unwrap();
    fs::write(path("cut.arrow"), &arrow[..arrow.len() - 8]).unwrap();
    let bytes = arrow.len() - 8;
    assert_eq!(
        error(&path("cut.arrow")),
        format!(
            "`DIR/cut.arrow` is truncated: `{bytes}` bytes without the end marker of an Arrow stream"
        )
    );
    fs::write(path("garbage.arrow"), [&[7; 100][..], &[255, 255, 255, 255, 0, 0, 0, 0]].concat())
        .unwrap();
    assert_eq!(error(&path("garbage.arrow")), "`DIR/garbage.arrow` cannot be read as Arrow");
    let missing = Source {
        role_mapping: vec![("user".to_owned(), RolePath::Column("question".to_owned()))],
        ..source(&fixture_path("sources/parquet"), "train")
    };
    let error = rows(&missing).unwrap_err();
    assert!(
        error.to_string().ends_with(
            "has no column `question`, which the recipe or its format names; available: `id`, `score`, `flag`, `note`, `messages`"
        ),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("role_mapping"));
}

#[test]
fn lists_of_files_stay_in_their_folder() {
    let folder = tempfile::tempdir().unwrap();
    let outside = folder.path().join("outside.arrow");
    fs::copy(fixture_path("sources/saved/data-00000-of-00003.arrow"), &outside).unwrap();
    let saved = folder.path().join("saved");
    fs::create_dir(&saved).unwrap();
    for name in ["../outside.arrow", outside.to_str().unwrap(), "", "a/../../outside.arrow"] {
        let state = json!({"_data_files": [{"filename": name}]});
        fs::write(saved.join("state.json"), state.to_string()).unwrap();
        let error = rows(&source(&saved, "train")).unwrap_err();
        assert!(matches!(&error, Error::LeavesFolder { found, .. } if found == name), "{error}");
    }
    fs::write(saved.join("dataset_dict.json"), r#"{"splits": ["../saved"]}"#).unwrap();
    let error = rows(&source(&saved, "../saved")).unwrap_err();
    assert!(matches!(&error, Error::LeavesFolder { .. }), "{error}");
}

#[test]
fn links_that_lead_back_are_followed_once() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(fixture_path("sources/json/train.jsonl"), folder.path().join("train.jsonl")).unwrap();
    for name in ["a", "b"] {
        std::os::unix::fs::symlink(".", folder.path().join(name)).unwrap();
    }
    let expected = rows(&source(&fixture_path("sources/json/train.jsonl"), "train")).unwrap();
    assert_eq!(rows(&source(folder.path(), "train")).unwrap(), expected);
}

/// The rows of a file with all its columns.
fn all_rows(path: &Path) -> Result<Vec<Value>, Error> {
    let source = source(path, "train");
    let open = OpenSource::find(&source)?;
    let wanted = Wanted { optional: open.columns()?, ..Wanted::default() };
    let rows = open.read(&wanted)?;
    (0..rows.len()).map(|i| rows.row(i).map(Value::Object)).collect()
}

#[test]
fn folders_have_the_splits_that_datasets_finds() {
    let golden = fixture("layouts.json");
    for case in golden["cases"].as_array().unwrap() {
        let folder = tempfile::tempdir().unwrap();
        for name in case["files"].as_array().unwrap() {
            write(folder.path(), name.as_str().unwrap(), "{\"a\": 1}\n");
        }
        if let Some(readme) = case["readme"].as_str() {
            write(folder.path(), "README.md", readme);
        }
        let kwargs = case.as_object().unwrap().iter();
        let kwargs = kwargs
            .filter(|(key, _)| ["name", "data_dir", "data_files"].contains(&key.as_str()))
            .map(|(key, value)| (key.clone(), value.clone()));
        let source = |split: &str| Source {
            kwargs: kwargs.clone().collect(),
            ..source(folder.path(), split)
        };
        let files = |split: &str| -> Result<Vec<String>, Error> {
            let source = source(split);
            let open = OpenSource::find(&source)?;
            let name = |path: &Path| path.strip_prefix(folder.path()).unwrap().to_owned();
            Ok(open.files().map(|path| name(path).to_str().unwrap().to_owned()).collect())
        };
        let Some(splits) = case["splits"].as_array() else {
            assert!(files("train").is_err(), "{case:#}");
            continue;
        };
        let mut in_order = Vec::new();
        for split in splits {
            let expected: Vec<String> = serde_json::from_value(split[1].clone()).unwrap();
            assert_eq!(files(split[0].as_str().unwrap()).unwrap(), expected, "{case:#}");
            in_order.extend(expected);
        }
        assert_eq!(files("all").unwrap(), in_order, "{case:#}");
    }
}

#[test]
fn a_readme_may_start_with_a_byte_order_mark() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "x/1.jsonl", "{\"a\": 1}");
    write(folder.path(), "y/2.jsonl", "{\"a\": 2}");
    // datasets reads no head here and mixes both configurations.
    let head = "\u{feff}---\r\nconfigs:\r\n- config_name: one\r\n  data_dir: y\r\n---\r\n";
    write(folder.path(), "README.md", head);
    assert_eq!(all_rows(folder.path()).unwrap(), [json!({"a": 2})]);
    let outside = "---\nconfigs:\n- config_name: one\n  data_dir: ../y\n---\n";
    write(folder.path(), "README.md", outside);
    assert!(matches!(all_rows(folder.path()).unwrap_err(), Error::LeavesFolder { .. }));
}

#[test]
fn every_compression_gives_the_rows_that_were_written() {
    let golden = fixture("files/rows.json");
    let folder = fixture_path("files");
    for name in [
        "none.parquet",
        "snappy.parquet",
        "gzip.parquet",
        "zstd.parquet",
        "lz4.parquet",
        "brotli.parquet",
        "zstd.arrow",
        "lz4.arrow",
        "lines.jsonl.gz",
        "lines.jsonl.zst",
        "whole.json.gz",
        "whole.json.zst",
    ] {
        let rows = all_rows(&folder.join(name)).unwrap();
        assert_eq!(json!(rows), golden["plain"], "{name}");
    }
    // The name need not say it.
    let renamed = tempfile::tempdir().unwrap();
    fs::copy(folder.join("lines.jsonl.zst"), renamed.path().join("train.jsonl")).unwrap();
    assert_eq!(json!(all_rows(renamed.path()).unwrap()), golden["plain"]);
}

#[test]
fn columns_of_any_type_have_the_values_that_python_has() {
    let golden = fixture("files/rows.json");
    let folder = fixture_path("files");
    for name in ["types.parquet", "types.arrow", "types-file.arrow"] {
        let rows = all_rows(&folder.join(name)).unwrap();
        for (row, golden) in rows.iter().zip(golden["types"].as_array().unwrap()) {
            let mut golden = golden.clone();
            if name == "types.parquet" {
                // Parquet has no such types.
                golden.as_object_mut().unwrap().retain(|key, _| key != "date64" && key != "wide");
            }
            assert_eq!(row, &golden, "{name}");
        }
        assert_eq!(rows.len(), 6);
    }
    // Bytes that are no text and lengths of time have no JSON form, wherever they are.
    let odd = all_rows(&folder.join("odd.arrow")).unwrap();
    assert_eq!(json!(odd), json!([{"id": 1, "message": {"text": "a"}}, {"id": 2, "message": {}}]));
    let open = source(&folder.join("odd.arrow"), "train");
    let wanted = Wanted { required: vec!["took".to_owned()], ..Wanted::default() };
    let error = OpenSource::find(&open).unwrap().read(&wanted).unwrap_err().to_string();
    assert!(error.contains("column `took` is of type Duration"), "{error}");
}

#[test]
fn rows_of_columns_come_back_as_they_were_written() {
    let golden = fixture("files/rows.json");
    let folder = fixture_path("files");
    for name in ["calls", "mixed"] {
        for path in [format!("{name}.jsonl"), format!("{name}.parquet"), name.to_owned()] {
            let rows = all_rows(&folder.join(&path)).unwrap();
            assert_eq!(json!(rows), golden[name], "{path}");
        }
    }
    // Lines keep the order of their keys, too.
    let rows = all_rows(&folder.join("calls.jsonl")).unwrap();
    assert_eq!(json!(rows).to_string(), golden["calls"].to_string());
}

#[test]
fn columns_are_known_before_rows_are_read() {
    let columns = |path: &Path, split: &str| {
        let source = source(path, split);
        OpenSource::find(&source).unwrap().columns().unwrap()
    };
    let expected = ["id", "score", "flag", "note", "messages"];
    for name in ["json", "parquet", "saved", "saved_dict"] {
        assert_eq!(columns(&fixture_path("sources").join(name), "train"), expected, "{name}");
    }
    assert_eq!(columns(&fixture_path("files/whole.json.gz"), "train"), ["id", "text", "x"]);
    let folder = tempfile::tempdir().unwrap();
    // The key of row 100 is seen, that of row 101 is not, over all files.
    let rows: Vec<String> = (1..=60).map(|i| json!({"a": i}).to_string()).collect();
    write(folder.path(), "1.jsonl", &rows.join("\n"));
    let mut rows: Vec<String> = (61..=99).map(|i| json!({"b": i}).to_string()).collect();
    rows.extend(["{\"c\": 100}".to_owned(), "{\"d\": 101}".to_owned(), "no JSON".to_owned()]);
    write(folder.path(), "2.jsonl", &rows.join("\n"));
    assert_eq!(columns(folder.path(), "train"), ["a", "b", "c"]);
    // Only what is wanted is read, and what is optional need not be there.
    let parquet = source(&fixture_path("sources/parquet"), "train");
    let wanted = Wanted {
        required: vec!["flag".to_owned()],
        optional: vec!["id".to_owned(), "tools".to_owned()],
        scratch_dir: Some(folder.path().join("new")),
    };
    let rows = OpenSource::find(&parquet).unwrap().read(&wanted).unwrap();
    assert_eq!(Value::Object(rows.row(0).unwrap()), json!({"id": 0, "flag": true}));
    assert_eq!(fs::read_dir(folder.path().join("new")).unwrap().count(), 0);
}

#[test]
fn files_that_look_like_data_are_read_or_named() {
    let folder = tempfile::tempdir().unwrap();
    let row = "{\"a\": 1}\n";
    for name in [
        "train-0.jsonl",
        "train-1.JSONL",
        "train-2.csv",
        "train-3.jsonl.bz2",
        "train-4.parquet.gz",
        "train.txt",
        "extra.json",
        "README.md",
        "train.py",
        "LICENSE",
    ] {
        write(folder.path(), name, row);
    }
    let source = source(folder.path(), "train");
    let open = OpenSource::find(&source).unwrap();
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let read: Vec<String> = open.files().map(name).collect();
    assert_eq!(read, ["train-0.jsonl", "train-1.JSONL"]);
    let left_out: Vec<_> =
        open.left_out().iter().map(|file| (name(&file.path), file.why)).collect();
    assert_eq!(
        left_out,
        [
            ("extra.json".to_owned(), "its name belongs to no split"),
            ("train-2.csv".to_owned(), "it is a table of text (CSV), whose columns have no types"),
            ("train-3.jsonl.bz2".to_owned(), "it is compressed"),
            ("train-4.parquet.gz".to_owned(), "it is compressed"),
            ("train.txt".to_owned(), "it is plain text"),
        ]
    );
    let both = tempfile::tempdir().unwrap();
    write(both.path(), "a.jsonl", row);
    fs::copy(fixture_path("files/none.parquet"), both.path().join("a.parquet")).unwrap();
    let both = crate::sources::source(both.path(), "train");
    let open = OpenSource::find(&both).unwrap();
    assert_eq!(open.files().map(name).collect::<Vec<_>>(), ["a.parquet"]);
    assert_eq!(open.left_out()[0].why, "most files of the split have another format");
}

#[test]
fn bad_files_are_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let refuse = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        let error = all_rows(&path).unwrap_err();
        let hint = error.hint().unwrap_or_default();
        (error.to_string().replace(folder.path().to_str().unwrap(), "DIR"), hint)
    };
    let row = b"{\"a\": 1}\n";

    for (name, why) in [
        ("a.csv", "it is a table of text (CSV), whose columns have no types"),
        ("a.txt", "it is plain text"),
        ("a.zip", "it is an archive"),
        ("a.jsonl.xz", "it is compressed"),
        ("a.rows", "its name says no format"),
    ] {
        let (error, hint) = refuse(name, row);
        assert_eq!(
            error,
            format!(
                "`DIR/{name}` is not read: {why}, required: a name that ends in .json, .jsonl or .ndjson (also with .gz or .zst), .parquet or .arrow"
            )
        );
        assert!(hint.contains("to_parquet"), "{hint}");
    }
    for (name, content, found) in [
        ("bzip2.jsonl", &b"BZh91AY&SY"[..], "bzip2 data"),
        ("xz.jsonl", b"\xfd7zXZ\0\0\0\0", "xz data"),
        ("zip.json", b"PK\x03\x04\0\0\0\0", "a zip archive"),
        ("utf16.jsonl", b"\xff\xfe{\0}\0\n\0", "UTF-16 text"),
    ] {
        let (error, hint) = refuse(name, content);
        assert_eq!(
            error,
            format!(
                "`DIR/{name}` holds {found}, required: JSON in UTF-8, plain or compressed with gzip or Zstandard"
            )
        );
        assert!(hint.contains("unpack or convert"), "{hint}");
    }
    for name in ["lines.jsonl.gz", "lines.jsonl.zst", "whole.json.gz"] {
        let content = fs::read(fixture_path("files").join(name)).unwrap();
        let (error, hint) = refuse(name, &content[..content.len() - 20]);
        assert_eq!(error, format!("`DIR/{name}` cannot be decompressed"));
        assert!(hint.contains("fetch it again"), "{hint}");
    }
    let line_3 = |bad: &[u8]| [&row[..], b"\r\n", bad].concat();
    let (error, hint) = refuse("cut.jsonl", &line_3(b"{\"a\": \"b"));
    assert_eq!(
        error,
        "`DIR/cut.jsonl:3` ends before its JSON value does, required: one object on each line"
    );
    assert!(hint.contains("jq -c"), "{hint}");
    let (error, _) = refuse("pretty.json", b"{\n \"rows\": [\n  {\"a\": 1}\n ]\n}\n");
    assert_eq!(
        error,
        "`DIR/pretty.json:1` ends before its JSON value does, required: one object on each line"
    );
    for (name, bad) in [
        ("nul.jsonl", &b"\0\0\0\0"[..]),
        ("control.jsonl", b"{\"a\": \"\0\"}"),
        ("latin.jsonl", b"{\"a\": \"caf\xe9\"}"),
        ("python.jsonl", b"{'a': 1}"),
        ("nan.jsonl", b"{\"a\": NaN}"),
    ] {
        let (error, hint) = refuse(name, &line_3(bad));
        assert_eq!(error, format!("`DIR/{name}:3` is not valid JSON"));
        assert!(hint.contains("one JSON object per line"), "{hint}");
    }
    let (error, _) = refuse("texts.json", b"[\"a\", \"b\"]");
    assert_eq!(error, "`DIR/texts.json:1` holds text, required: a list of objects");
    let (error, _) = refuse("empty.jsonl", b"");
    assert_eq!(error, "source `DIR/empty.jsonl` gives no row for split `train`");
}

#[test]
fn lines_are_read_as_they_are_however_long() {
    let folder = tempfile::tempdir().unwrap();
    let long = "x".repeat(50 << 20);
    let text = format!(
        "\u{feff}\r\n{{\"a\": 1, \"a\": 2}}\r\n   \r\n  {{\"b\": \"{long}\", \"a\": [1, \"two\", null]}}\n\n{{\"a\": 1e-7}}"
    );
    let plain = write(folder.path(), "plain.jsonl", &text);
    let zipped = folder.path().join("zipped.jsonl.zst");
    fs::write(&zipped, zstd::encode_all(text.as_bytes(), 1).unwrap()).unwrap();
    for path in [plain, zipped] {
        let source = source(&path, "train");
        let rows = OpenSource::find(&source).unwrap().read(&Wanted::default()).unwrap();
        // As in Python, the last of two values wins.
        assert_eq!(Value::Object(rows.row(0).unwrap()), json!({"a": 2}));
        assert_eq!(rows.row(1).unwrap()["b"].as_str().unwrap().len(), 50 << 20);
        assert_eq!(rows.row(1).unwrap()["a"], json!([1, "two", null]));
        assert_eq!(Value::Object(rows.row(2).unwrap()), json!({"a": 1e-7}));
        assert_eq!([0, 1, 2].map(|i| rows.id(i).line.unwrap()), [2, 4, 6]);
        assert_eq!(rows.len(), 3);
    }
}

#[test]
fn a_small_file_does_not_fill_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl.zst");
    let row = format!("{{\"a\": \"{}\"}}\n", "x".repeat(1 << 20));
    let mut encoder = zstd::Encoder::new(fs::File::create(&path).unwrap(), 1).unwrap();
    for _ in 0..300 {
        encoder.write_all(row.as_bytes()).unwrap();
    }
    encoder.finish().unwrap();
    let error = all_rows(&path).unwrap_err();
    let Error::Decompress { source, .. } = &error else { panic!("{error}") };
    assert!(source.to_string().starts_with("it holds more than `268435456` bytes"), "{source}");
    let error = all_rows(&fixture_path("files/repeated.parquet")).unwrap_err();
    assert!(matches!(error, Error::GrowsTooMuch { max_bytes: 0x1000_0000, .. }), "{error}");
}

#[test]
fn the_first_rows_are_read_without_the_others() {
    let golden = fixture("files/rows.json");
    let plain = golden["plain"].as_array().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let lines: Vec<String> = plain.iter().map(Value::to_string).collect();
    let plain_path = write(folder.path(), "plain.jsonl", &lines.join("\n"));
    let list = write(folder.path(), "list.json", &format!("[{}", lines.join(",")));
    let files = fixture_path("files");
    let read = |path: &Path, split: &str| {
        let source = source(path, split);
        let rows = OpenSource::find(&source)?.read(&Wanted {
            optional: ["id", "text", "x"].map(str::to_owned).to_vec(),
            ..Wanted::default()
        })?;
        (0..rows.len()).map(|i| rows.row(i).map(Value::Object)).collect::<Result<Vec<_>, _>>()
    };
    for path in [
        plain_path,
        files.join("zstd.parquet"),
        files.join("lz4.arrow"),
        files.join("whole.json.gz"),
    ] {
        for (split, range) in [
            ("train[:2]", 0..2),
            ("train[1:3]", 1..3),
            ("train[:2]+train[:4]", 0..2),
            ("train[-2:]", 3..5),
            ("train[1:9]", 1..5),
            ("train[-4:2]", 1..2),
            ("train[:40%]", 0..2),
        ] {
            let mut expected = plain[range].to_vec();
            if split.contains('+') {
                expected.extend_from_slice(&plain[..4]);
            }
            assert_eq!(read(&path, split).unwrap(), expected, "{}:{split}", path.display());
        }
        let empty = read(&path, "train[:0]").unwrap_err();
        assert!(matches!(empty, Error::EmptySource { .. }), "{empty}");
    }
    // The end of this list is missing, which shows that it is not read.
    assert_eq!(read(&list, "train[:2]").unwrap(), plain[..2]);
    assert!(matches!(read(&list, "train").unwrap_err(), Error::Json { .. }));
}

#[test]
fn a_file_that_changes_while_it_is_read_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "a.jsonl", "{\"a\": 1}\n{\"a\": 2}\n");
    let source = source(&path, "train");
    let rows = OpenSource::find(&source).unwrap().read(&Wanted::default()).unwrap();
    assert_eq!(rows.row(1).unwrap()["a"], 2);
    // Replaced by a file of the same size, as a download or an editor does.
    let new = write(folder.path(), "new", "{\"a\": 1}\n{\"a\": 3}\n");
    fs::rename(new, &path).unwrap();
    assert!(matches!(rows.row(1).unwrap_err(), Error::FileChanged { .. }));
}
