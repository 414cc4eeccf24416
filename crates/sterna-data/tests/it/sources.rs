//! Files as datasets wrote them (`golden/make_data_reference.py`), split expressions as it reads them, and what is refused.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};
use sterna_data::{
    Error,
    source::{OpenSource, SplitSpec, Wanted},
};
use sterna_recipe::{RolePath, Sampling, Source, UnmappedRoles};

use crate::support::{fixture, fixture_path};

/// The columns that the role mapping names.
fn mapped(source: &Source) -> Wanted {
    let mut required: Vec<String> = Vec::new();
    for (_, path) in &source.role_mapping {
        let (RolePath::Column(column) | RolePath::Items { array: column, .. }) = path;
        if !required.contains(column) {
            required.push(column.clone());
        }
    }
    Wanted { required, ..Wanted::default() }
}

fn source(path: &Path, split: &str) -> Source {
    let columns = ["id", "score", "flag", "note", "messages"];
    Source {
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
    }
}

fn rows(source: &Source) -> Result<Vec<Value>, Error> {
    let rows = OpenSource::find(source)?.read(&mapped(source))?;
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
        "source `DIR/other.jsonl` has no column `id`, which role_mapping names; available: `a`, `b`"
    );
    let text = write(folder.path(), "readme.txt", "hello");
    assert!(
        error(&text).ends_with("required: a name that ends in .json, .jsonl, .parquet or .arrow")
    );
    fs::create_dir(path("nothing")).unwrap();
    assert_eq!(
        error(&path("nothing")),
        "`DIR/nothing` has no data file, required: a .json, .jsonl, .parquet or .arrow file"
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
            "has no column `question`, which role_mapping names; available: `id`, `score`, `flag`, `note`, `messages`"
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
