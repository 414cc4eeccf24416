//! Data sets: rows in three formats, and the files that say which files they are in.

use std::path::Path;

use serde_json::Map;
use sterna_data::{
    messages::extract_chat,
    source::{OpenSource, Wanted},
};
use sterna_recipe::{LabelMask, RolePath, Sampling, Source, SourceType, UnmappedRoles};

use super::{Target, answer, crates, files, read, write};

const JSON_WORDS: &[&str] = &[
    "\"messages\"",
    "\"role\"",
    "\"content\"",
    "\"user\"",
    "\"assistant\"",
    "\"system\"",
    "\"id\"",
    "\"score\"",
    "\"note\"",
    "\"flag\"",
    "\\u0000",
    "\\ud800",
    "\\\"",
    "[{",
    "}]",
    "\r\n",
    "\n\n",
];

pub(super) const JSONL: Target = Target {
    name: "jsonl",
    dictionary: JSON_WORDS,
    memory: 3,
    seeds: || {
        let mut seeds = files("sterna-data/tests/fixtures/sources/json", ".jsonl");
        seeds.extend(files("sterna-data/tests/fixtures/sources/json", ".json"));
        seeds
    },
    run: |input, folder| read_as(input, folder, "train.jsonl"),
};

pub(super) const PARQUET: Target = Target {
    name: "parquet",
    dictionary: &["PAR1", "messages", "content", "ARROW:schema", "list", "element"],
    memory: 3,
    seeds: || files("sterna-data/tests/fixtures/sources/parquet", ".parquet"),
    run: |input, folder| read_as(input, folder, "train.parquet"),
};

pub(super) const ARROW: Target = Target {
    name: "arrow",
    dictionary: &["ARROW1", "\u{0}\u{0}\u{0}\u{0}", "messages", "content"],
    memory: 3,
    seeds: || files("sterna-data/tests/fixtures/sources/saved", ".arrow"),
    run: |input, folder| read_as(input, folder, "train.arrow"),
};

pub(super) const README: Target = Target {
    name: "readme",
    dictionary: &[
        "configs:",
        "- config_name: default",
        "data_files:",
        "split: train",
        "path: data/*",
        "path: ../**",
        "default: true",
        "data_dir: data",
        "data_dir: ../..",
        "\r\n",
        "&a",
        "*a",
        "<<: *a",
        "---\n",
        "**",
        "*",
        "{a,b}",
        "[",
        "]",
        "?",
        "{{{{",
        "!",
    ],
    memory: 3,
    seeds: || {
        let head = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/a*\n---\n# Chats\n";
        let short =
            "---\nlicense: mit\nconfigs:\n- config_name: x\n  data_files: \"data/*.jsonl\"\n---\n";
        let folder = "\u{feff}---\r\nconfigs:\r\n- config_name: x\r\n  data_dir: data\r\n---\r\n";
        [head, short, folder].map(|text| text.as_bytes().to_vec()).to_vec()
    },
    run: |input, folder| {
        write(&folder.join("README.md"), input);
        std::fs::create_dir_all(folder.join("data")).expect("the folder is empty");
        write(&folder.join("data/a.jsonl"), &rows());
        // What a pattern that leaves the folder would find.
        let _ = std::fs::write(folder.join("../outside.jsonl"), "not for us");
        read_rows(&source(folder))
    },
};

pub(super) const STATE: Target = Target {
    name: "state",
    dictionary: &[
        "_data_files",
        "filename",
        "\"../outside.jsonl\"",
        "\"/etc/passwd\"",
        "\".\"",
        "\"..\"",
        "_split",
    ],
    memory: 3,
    seeds: || files("sterna-data/tests/fixtures/sources/saved", "state.json"),
    run: |input, folder| {
        write(&folder.join("state.json"), input);
        for name in
            ["data-00000-of-00003.arrow", "data-00001-of-00003.arrow", "data-00002-of-00003.arrow"]
        {
            write(
                &folder.join(name),
                &read(&crates().join("sterna-data/tests/fixtures/sources/saved").join(name)),
            );
        }
        read_rows(&source(folder))
    },
};

fn rows() -> Vec<u8> {
    read(&crates().join("sterna-data/tests/fixtures/sources/json/train.jsonl"))
}

fn source(path: &Path) -> Source {
    let items = |value: &str| RolePath::Items {
        array: "messages".to_owned(),
        field: "role".to_owned(),
        value: value.to_owned(),
    };
    Source {
        kind: SourceType::HuggingFaceInstruct,
        name_or_path: path.to_string_lossy().into_owned(),
        split: "train".to_owned(),
        kwargs: Map::new(),
        role_mapping: ["user", "assistant"].map(|role| (role.to_owned(), items(role))).to_vec(),
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

fn read_as(input: &[u8], folder: &Path, name: &str) -> String {
    let path = folder.join(name);
    write(&path, input);
    read_rows(&source(&path))
}

/// Reads all rows and the chats in them, by both rules.
fn read_rows(source: &Source) -> String {
    let rows = match OpenSource::find(source).and_then(|open| open.read(&Wanted::mapped(source))) {
        Ok(rows) => rows,
        Err(err) => return answer(&err),
    };
    let mut num_messages = 0;
    let mut refusal = String::new();
    for index in 0..rows.len() {
        for label_mask in [LabelMask::Exact, LabelMask::Reference] {
            let chat = rows
                .row(index)
                .and_then(|row| extract_chat(source, label_mask, row, &|| rows.id(index)));
            match chat {
                Ok(chat) => num_messages += chat.conversation.messages.len(),
                Err(err) => refusal = format!("{err}"),
            }
        }
    }
    format!("{} rows, {num_messages} messages; {refusal}", rows.len())
}
