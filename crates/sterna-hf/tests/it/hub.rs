//! Names become folders: through the hub, its cache, and what can be wrong with both.

mod server;

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use sterna_arch::ModelConfig;
use sterna_hf::hub::Hub;
use sterna_hf::{Error, HubError};

use self::server::{COMMIT, Content, Server};

fn hub(server: &Server, cache: &Path) -> Hub {
    Hub { endpoint: server.endpoint(), cache_dir: cache.to_owned(), token: None, is_offline: false }
}

fn files(files: &[(&str, &str)]) -> Vec<(String, Vec<u8>)> {
    files.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())).collect()
}

const CONFIG: &str = r#"{"model_type": "llama", "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 32}"#;

fn content() -> Content {
    let index = r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    let repos = [
        (
            "models/org/single",
            files(&[
                ("README.md", "about"),
                ("config.json", CONFIG),
                ("tokenizer.json", "{}"),
                ("chat_template.jinja", "{{ 1 }}"),
                ("model.safetensors", "the weights"),
                ("consolidated.safetensors", "the same weights again"),
                ("pytorch_model.bin", "pickled"),
                ("onnx/model.onnx", "other"),
            ]),
        ),
        (
            "models/org/sharded",
            files(&[
                ("config.json", CONFIG),
                ("model.safetensors.index.json", index),
                ("model-00001-of-00002.safetensors", "one"),
                ("model-00002-of-00002.safetensors", "two"),
                ("model-00003-of-00002.safetensors", "of no index"),
            ]),
        ),
        ("models/org/pickled", files(&[("config.json", CONFIG), ("pytorch_model.bin", "x")])),
        ("models/org/empty", files(&[("README.md", "x")])),
        (
            "models/org/escaping",
            files(&[
                ("config.json", CONFIG),
                ("../../../escaped.json", "x"),
                ("model.safetensors", "x"),
            ]),
        ),
        (
            "datasets/org/chats",
            files(&[
                ("README.md", "---\nconfigs: []\n---\n"),
                (".gitattributes", "x"),
                ("data/train-00000-of-00001.parquet", "rows"),
                ("extra/more.jsonl", "{}\n"),
                ("load.py", "code"),
            ]),
        ),
        ("datasets/org/script", files(&[("script.py", "code")])),
    ];
    let repos: HashMap<_, _> =
        repos.into_iter().map(|(name, files)| (name.to_owned(), files)).collect();
    Content { repos, ..Content::default() }
}

fn names_in(dir: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            let below = path.file_name().unwrap().to_str().unwrap().to_owned();
            names.extend(names_in(&path).into_iter().map(|name| format!("{below}/{name}")));
        } else {
            names.push(path.file_name().unwrap().to_str().unwrap().to_owned());
        }
    }
    names.sort();
    names
}

fn hub_error(result: sterna_hf::Result<std::path::PathBuf>) -> HubError {
    match result.unwrap_err() {
        Error::Hub(error) => *error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_model_comes_with_what_training_needs_and_no_more() {
    let (server, cache) = (Server::start(content()), tempfile::tempdir().unwrap());
    let dir = hub(&server, cache.path()).model("org/single").unwrap();
    assert_eq!(
        names_in(&dir),
        ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
    );
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), b"the weights");
    ModelConfig::from_dir(&dir).unwrap();
    // The layout that all Hugging Face libraries share.
    assert_eq!(dir, cache.path().join("models--org--single/snapshots").join(COMMIT));
    let commit = fs::read_to_string(cache.path().join("models--org--single/refs/main")).unwrap();
    assert_eq!(commit, COMMIT);
}

#[test]
fn a_sharded_model_comes_with_the_files_of_its_index() {
    let (server, cache) = (Server::start(content()), tempfile::tempdir().unwrap());
    let dir = hub(&server, cache.path()).model("org/sharded").unwrap();
    assert_eq!(
        names_in(&dir),
        [
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json"
        ]
    );
}

#[test]
fn a_config_comes_without_weights() {
    let (server, cache) = (Server::start(content()), tempfile::tempdir().unwrap());
    let dir = hub(&server, cache.path()).model_config("org/single").unwrap();
    assert_eq!(names_in(&dir), ["chat_template.jinja", "config.json", "tokenizer.json"]);
}

#[test]
fn a_data_set_comes_with_its_files_and_readme() {
    let (server, cache) = (Server::start(content()), tempfile::tempdir().unwrap());
    let hub = hub(&server, cache.path());
    let dir = hub.dataset("org/chats").unwrap();
    assert_eq!(
        names_in(&dir),
        ["README.md", "data/train-00000-of-00001.parquet", "extra/more.jsonl"]
    );
    assert!(dir.starts_with(cache.path().join("datasets--org--chats")));
    assert!(matches!(hub_error(hub.dataset("org/script")), HubError::NoData { .. }));
}

#[test]
fn a_second_call_downloads_nothing_again() {
    let (server, cache) = (Server::start(content()), tempfile::tempdir().unwrap());
    let hub = hub(&server, cache.path());
    hub.model_config("org/single").unwrap();
    server.requests();
    let dir = hub.model("org/single").unwrap();
    let asked = server.requests();
    assert!(asked[0].starts_with("/api/models/org/single/revision/main"), "{asked:?}");
    assert!(asked[1..].iter().all(|path| path.ends_with("/model.safetensors")), "{asked:?}");
    hub.model("org/single").unwrap();
    assert_eq!(server.requests().len(), 1, "only which commit it is");
    assert!(dir.join("model.safetensors").exists());
}

#[test]
fn the_cache_serves_when_the_hub_is_gone() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(content());
    let mut hub = hub(&server, cache.path());
    let dir = hub.model("org/single").unwrap();
    hub.model_config("org/sharded").unwrap();
    let data = hub.dataset("org/chats").unwrap();
    drop(server);
    for is_offline in [false, true] {
        hub.is_offline = is_offline;
        assert_eq!(hub.model("org/single").unwrap(), dir);
        assert_eq!(hub.model(&format!("org/single@{COMMIT}")).unwrap(), dir);
        assert_eq!(hub.dataset("org/chats").unwrap(), data);
        // Part of a model is not a model.
        let error = hub_error(hub.model("org/sharded"));
        let HubError::NotCached { file: Some(file), .. } = &error else { panic!("{error:?}") };
        assert_eq!(file, "model.safetensors");
    }
}

#[test]
fn offline_asks_nobody() {
    let (server, cache) = (Server::start(content()), tempfile::tempdir().unwrap());
    let mut hub = hub(&server, cache.path());
    hub.is_offline = true;
    let error = hub_error(hub.model("org/single"));
    assert!(matches!(error, HubError::NotCached { file: None, is_offline: true, .. }), "{error:?}");
    let message = error.to_string();
    assert!(message.contains("model `org/single`"), "{message}");
    assert!(message.contains(cache.path().to_str().unwrap()), "{message}");
    assert!(error.hint().unwrap().contains("HF_HUB_OFFLINE"));
    assert!(server.requests().is_empty());
}

#[test]
fn no_network_says_so() {
    let cache = tempfile::tempdir().unwrap();
    // A port that was just free.
    let server = Server::start(content());
    let hub = hub(&server, cache.path());
    drop(server);
    let error = hub_error(hub.model("org/single"));
    assert!(matches!(error, HubError::Unreachable { .. }), "{error:?}");
    assert!(
        error.to_string().contains("127.0.0.1") && error.to_string().contains("org/single"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("network"));
}

#[test]
fn a_server_in_trouble_is_as_good_as_none() {
    let (server, cache) = (Server::start(content()), tempfile::tempdir().unwrap());
    let hub = hub(&server, cache.path());
    let dir = hub.model("org/single").unwrap();
    server.change(|content| content.status = Some(503));
    assert_eq!(hub.model("org/single").unwrap(), dir);
    assert!(matches!(hub_error(hub.model("org/sharded")), HubError::Unreachable { .. }));
}

#[test]
fn unknown_names_and_closed_doors_are_told_apart() {
    let (server, cache) = (Server::start(content()), tempfile::tempdir().unwrap());
    let mut hub = hub(&server, cache.path());
    let error = hub_error(hub.model("org/typo@v2"));
    assert!(matches!(error, HubError::NotFound { .. }), "{error:?}");
    assert!(error.to_string().contains("model `org/typo` at revision `v2` not found"), "{error}");

    for status in [401, 403] {
        server.change(|content| content.status = Some(status));
        let error = hub_error(hub.model("org/single"));
        assert!(error.to_string().contains(&format!("(status `{status}`)")), "{error}");
        assert!(error.hint().unwrap().contains("set `HF_TOKEN`"), "{:?}", error.hint());
    }

    server.change(|content| (content.status, content.token) = (None, Some("hf_right".to_owned())));
    hub.token = Some("hf_wrong".to_owned());
    let error = hub_error(hub.model("org/single"));
    assert!(error.hint().unwrap().contains("accept the terms"), "{:?}", error.hint());
    hub.token = Some("hf_right".to_owned());
    hub.model("org/single").unwrap();
}

#[test]
fn a_repository_without_safetensors_or_config_is_refused() {
    let (server, cache) = (Server::start(content()), tempfile::tempdir().unwrap());
    let hub = hub(&server, cache.path());
    assert!(matches!(hub_error(hub.model("org/pickled")), HubError::NoWeights { .. }));
    let error = hub_error(hub.model("org/empty"));
    assert!(
        matches!(&error, HubError::Download { file, .. } if file == "config.json"),
        "{error:?}"
    );
}

#[test]
fn names_of_files_cannot_leave_the_cache() {
    let (server, cache) = (Server::start(content()), tempfile::tempdir().unwrap());
    let error = hub_error(hub(&server, cache.path()).model("org/escaping"));
    assert!(error.to_string().contains("`../../../escaped.json`"), "{error}");
    assert!(names_in(cache.path()).is_empty());
}

#[test]
fn a_download_that_breaks_off_is_continued() {
    let (server, cache) = (Server::start(content()), tempfile::tempdir().unwrap());
    // Each attempt brings half of what is left of eleven bytes.
    server.change(|content| content.cut = Some("model.safetensors".to_owned()));
    let dir = hub(&server, cache.path()).model("org/single").unwrap();
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), b"the weights");
    assert!(
        server.requests().iter().filter(|path| path.ends_with("/model.safetensors")).count() > 3
    );
}

#[test]
fn half_a_download_is_never_served() {
    let (server, cache) = (Server::start(content()), tempfile::tempdir().unwrap());
    let mut hub = hub(&server, cache.path());
    let long = vec![b'x'; 5000];
    server.change(|content| {
        content.cut = Some("model.safetensors".to_owned());
        let files = content.repos.get_mut("models/org/single").unwrap();
        files.iter_mut().find(|(name, _)| name == "model.safetensors").unwrap().1 = long.clone();
    });
    let error = hub_error(hub.model("org/single"));
    assert!(
        matches!(&error, HubError::Download { file, .. } if file == "model.safetensors"),
        "{error:?}"
    );
    hub.is_offline = true;
    assert!(matches!(hub_error(hub.model("org/single")), HubError::NotCached { .. }));
    hub.is_offline = false;
    server.change(|content| content.cut = None);
    let dir = hub.model("org/single").unwrap();
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), long);
}

#[test]
fn folders_are_returned_as_they_are() {
    let (server, cache) = (Server::start(content()), tempfile::tempdir().unwrap());
    let hub = hub(&server, cache.path());
    let dir = tempfile::tempdir().unwrap();
    let name = dir.path().to_str().unwrap();
    assert_eq!(hub.model(name).unwrap(), dir.path());
    assert_eq!(hub.model_config(name).unwrap(), dir.path());
    assert_eq!(hub.dataset(name).unwrap(), dir.path());
    let error = hub_error(hub.model("/no/such/folder"));
    assert!(error.to_string().starts_with("`/no/such/folder` is not a folder"), "{error}");
    assert!(server.requests().is_empty());
}

#[test]
fn tokens_and_passwords_are_in_no_message() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(content());
    let host = server.endpoint().replace("http://", "");
    for endpoint in [
        format!("http://someone:PASSWORD@{host}"),
        "http://someone:PASSWORD@127.0.0.1:1".to_owned(),
    ] {
        let hub = Hub {
            endpoint,
            cache_dir: cache.path().to_owned(),
            token: Some("hf_TOKEN".to_owned()),
            is_offline: false,
        };
        let mut said = vec![format!("{hub:?}")];
        for name in ["org/nobody", "org/gated", "org/single"] {
            let Err(error) = hub.model(name) else { continue };
            said.push(format!("{error:?}"));
            let mut cause: Option<&dyn std::error::Error> = Some(&error);
            while let Some(error) = cause {
                said.push(error.to_string());
                cause = error.source();
            }
        }
        assert!(said.len() > 2, "something was refused");
        for text in said {
            assert!(!text.contains("PASSWORD") && !text.contains("TOKEN"), "{text}");
        }
    }
}
