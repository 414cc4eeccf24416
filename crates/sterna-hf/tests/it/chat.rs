//! Chat templates render byte for byte as transformers renders them.

use std::path::Path;

use serde_json::Value;
use sterna_hf::{ChatTemplate, Conversation, Message};

use crate::{fixture, golden};

fn messages(conversation: &Value) -> Conversation {
    let turns = conversation.as_array().unwrap();
    let text = |turn: &Value, key: &str| turn[key].as_str().unwrap().to_owned();
    let message = |turn| Message::new(text(turn, "role"), text(turn, "content"));
    turns.iter().map(message).collect::<Vec<_>>().into()
}

fn source(golden: &Value, name: &str) -> String {
    match &golden["snippets"][name] {
        Value::String(snippet) => snippet.clone(),
        _ => std::fs::read_to_string(fixture("chat").join(format!("{name}.jinja"))).unwrap(),
    }
}

#[test]
fn every_template_and_conversation_equals_transformers() {
    let golden = golden("chat.json");
    let special_tokens = golden["special_tokens"].as_object().unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() > 300, "the corpus is there");
    let mut wrong = Vec::new();
    for case in cases {
        let name = case["template"].as_str().unwrap();
        let conversation = case["conversation"].as_str().unwrap();
        let prompt = case["add_generation_prompt"].as_bool().unwrap();
        let messages = messages(&golden["conversations"][conversation]);
        let found = ChatTemplate::compile(&source(&golden, name), Path::new(name))
            .and_then(|template| template.render(&messages, prompt, special_tokens));
        match (&found, case["text"].as_str()) {
            (Ok(found), Some(text)) if found == text => {}
            (Err(_), None) => {}
            _ => wrong.push(format!(
                "{name}, {conversation}, {prompt}:\n found {found:?}\n wants {}",
                case.get("text").unwrap_or(&case["message"])
            )),
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[test]
fn refusals_say_what_the_template_says() {
    let golden = golden("chat.json");
    let special_tokens = golden["special_tokens"].as_object().unwrap();
    let mut num_refusals = 0;
    for case in golden["cases"].as_array().unwrap() {
        if case["error"] != "TemplateError" {
            continue;
        }
        num_refusals += 1;
        let name = case["template"].as_str().unwrap();
        let messages = messages(&golden["conversations"][case["conversation"].as_str().unwrap()]);
        let template = ChatTemplate::compile(&source(&golden, name), Path::new(name)).unwrap();
        let prompt = case["add_generation_prompt"].as_bool().unwrap();
        let error = template.render(&messages, prompt, special_tokens).unwrap_err();
        let sterna_hf::Error::TemplateRefused { message, .. } = &error else { panic!("{error:?}") };
        assert_eq!(message, case["message"].as_str().unwrap(), "{name}");
        assert!(error.hint().is_some());
    }
    assert!(num_refusals > 10, "the corpus has refusals");
}

#[test]
fn the_date_is_todays() {
    let template =
        ChatTemplate::compile("{{ strftime_now('%Y-%m-%d %d %b %Y') }}", Path::new("t")).unwrap();
    assert!(template.day().is_some());
    let found = template.render(&Conversation::default(), false, &serde_json::Map::new()).unwrap();
    // The day may end between the two.
    let today = || chrono::Local::now().format("%Y-%m-%d %d %b %Y").to_string();
    assert!(found == today() || found == today(), "{found}");
    let bad = ChatTemplate::compile("{{ strftime_now('%!') }}", Path::new("t")).unwrap();
    assert!(bad.render(&Conversation::default(), false, &serde_json::Map::new()).is_err());
}
