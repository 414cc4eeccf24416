//! Rows to messages, by the reference's rule (`golden/make_data_reference.py`) and by ours.

use serde_json::{Map, Value, json};
use sterna_data::{
    Error,
    messages::{Chat, extract_chat},
};
use sterna_recipe::{LabelMask, RolePath, Sampling, Source, SourceType, UnmappedRoles};

use crate::support::{fixture, row_id};

fn source(role_mapping: &[(&str, &str)], content_key: Option<&str>) -> Source {
    let path = |path: &str| match path.split('.').collect::<Vec<_>>()[..] {
        [array, field, value] => RolePath::Items {
            array: array.to_owned(),
            field: field.to_owned(),
            value: value.to_owned(),
        },
        _ => RolePath::Column(path.to_owned()),
    };
    Source {
        kind: SourceType::HuggingFaceInstruct,
        name_or_path: "chats.jsonl".to_owned(),
        split: "train".to_owned(),
        kwargs: Map::new(),
        role_mapping: role_mapping
            .iter()
            .map(|(role, text)| ((*role).to_owned(), path(text)))
            .collect(),
        content_key: content_key.map(str::to_owned),
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

fn extract(source: &Source, label_mask: LabelMask, row: &Value) -> Result<Chat, Error> {
    extract_chat(source, label_mask, row.as_object().unwrap().clone(), &row_id)
}

fn pairs(chat: &Chat) -> Vec<(&str, &str)> {
    chat.conversation.messages.iter().map(|message| (message.role(), message.content())).collect()
}

fn num_left_out(chat: &Chat) -> usize {
    chat.left_out.values().sum()
}

#[test]
fn reference_messages_are_the_references() {
    let cases = fixture("reference_messages.json");
    let cases = cases.as_array().unwrap();
    assert_eq!(cases.len(), 60);
    for case in cases {
        let mapping: Vec<(String, String)> =
            serde_json::from_value(case["role_mapping"].clone()).unwrap();
        let mapping: Vec<(&str, &str)> =
            mapping.iter().map(|(role, path)| (role.as_str(), path.as_str())).collect();
        let source = source(&mapping, case["content_key"].as_str());
        let golden: Vec<(String, String)> =
            serde_json::from_value(case["messages"].clone()).unwrap();
        match extract(&source, LabelMask::Reference, &case["row"]) {
            Ok(chat) => {
                let golden: Vec<_> =
                    golden.iter().map(|(role, text)| (role.as_str(), text.as_str())).collect();
                assert_eq!(pairs(&chat), golden, "{case}");
            }
            Err(Error::NoMessages { .. }) => assert!(golden.is_empty(), "{case}"),
            Err(error) => panic!("{error}: {case}"),
        }
    }
}

const CHAT: [(&str, &str); 3] = [
    ("system", "messages.role.system"),
    ("user", "messages.role.user"),
    ("assistant", "messages.role.assistant"),
];

#[test]
fn exact_messages_keep_order_and_number() {
    let row = json!({"messages": [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "u1"}, {"role": "assistant", "content": "a1"},
        {"role": "user", "content": "u2"}, {"role": "critic", "content": "t"}, {"role": "assistant", "content": "a2"},
        {"role": "assistant", "content": ""}, {"role": "user", "content": "u3"},
    ]});
    let source = source(&CHAT, None);
    let chat = extract(&source, LabelMask::Exact, &row).unwrap();
    let expected = [
        ("system", "S"),
        ("user", "u1"),
        ("assistant", "a1"),
        ("user", "u2"),
        ("assistant", "a2"),
        ("assistant", ""),
        ("user", "u3"),
    ];
    assert_eq!(pairs(&chat), expected);
    assert_eq!(num_left_out(&chat), 1, "the critic's message");
    // The reference cuts the same row to one turn, because there is one system message.
    let cut = extract(&source, LabelMask::Reference, &row).unwrap();
    assert_eq!(pairs(&cut), [("system", "S"), ("user", "u1"), ("assistant", "a1")]);
}

#[test]
fn exact_columns_stand_around_the_list() {
    let mapping =
        [("system", "intro"), ("user", "turns.from.human"), ("assistant", "turns.from.gpt")];
    let row = |intro: &str| {
        json!({"intro": intro, "turns": [
            {"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}, {"from": "human", "value": null},
        ]})
    };
    let chat = extract(&source(&mapping, None), LabelMask::Exact, &row("Be kind.")).unwrap();
    assert_eq!(pairs(&chat), [("system", "Be kind."), ("user", "q"), ("assistant", "r")]);
    assert_eq!(num_left_out(&chat), 1, "the message without text");
    let chat = extract(&source(&mapping, None), LabelMask::Exact, &row("")).unwrap();
    assert_eq!(pairs(&chat), [("user", "q"), ("assistant", "r")]);
}

#[test]
fn exact_lists_of_different_roles_must_agree() {
    let mapping = [("system", "intro"), ("user", "questions"), ("assistant", "answers")];
    let source = source(&mapping, None);
    let row = json!({"intro": "S", "questions": ["q1", "q2"], "answers": ["a1", "a2"]});
    let chat = extract(&source, LabelMask::Exact, &row).unwrap();
    let expected =
        [("system", "S"), ("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")];
    assert_eq!(pairs(&chat), expected);
    let row = json!({"questions": ["q1", "q2"], "answers": ["a1"]});
    let error = extract(&source, LabelMask::Exact, &row).unwrap_err();
    assert_eq!(
        error.to_string(),
        "sample `3` of `chats` (`chats.jsonl:4`): role_mapping gives `2` of role `user` and `1` of role `assistant`, \
         required: the same number for every role"
    );
}

#[test]
fn errors_say_what_the_row_has() {
    let source = source(&CHAT, None);
    let row = json!({"id": 1, "messages": [{"from": "human", "value": "q"}]});
    for label_mask in [LabelMask::Exact, LabelMask::Reference] {
        assert_eq!(
            extract(&source, label_mask, &row).unwrap_err().to_string(),
            "sample `3` of `chats` (`chats.jsonl:4`) gives no message with role_mapping \
             `system: messages.role.system, user: messages.role.user, assistant: messages.role.assistant`; \
             the row has `id`, `messages[].from`, `messages[].value`"
        );
    }
    let row = json!({"messages": [{"role": "user", "content": {"text": "q"}}]});
    assert_eq!(
        extract(&source, LabelMask::Exact, &row).unwrap_err().to_string(),
        "sample `3` of `chats` (`chats.jsonl:4`): `messages[0].content` is an object, required: text"
    );
}
