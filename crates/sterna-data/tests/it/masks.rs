//! Label masks: the reference's against the reference, ours against transformers and against chats whose spans are known.

use std::{fmt::Write, fs, ops::Range};

use proptest::prelude::*;
use sterna_data::{
    Error,
    error::RowId,
    label_mask::{ChatTokenizer, MaskRule, Tokens},
};
use sterna_hf::{Message, Tokenizer};
use sterna_recipe::LabelMask;

use crate::support::{exact, fixture, fixture_path, real_inputs, row_id, tokenizer_with};

/// The tokens of a chat, with labels on all replies.
fn tokenize_chat(
    tokenizer: &Tokenizer,
    messages: &[Message],
    rule: MaskRule,
    row_id: fn() -> RowId,
) -> Result<Tokens, Error> {
    let is_trained: Vec<bool> =
        messages.iter().map(|message| message.role() == "assistant").collect();
    let chats = ChatTokenizer::new(tokenizer, rule);
    chats.tokenize(&messages.to_vec().into(), &is_trained, row_id).map(|(tokens, _)| tokens)
}

fn smollm2() -> Tokenizer {
    Tokenizer::from_dir(&real_inputs().join("SmolLM2-135M-Instruct")).unwrap()
}

fn with_template(template: &str) -> Tokenizer {
    tokenizer_with(template, &[], &[])
}

fn messages(pairs: &[(String, String)]) -> Vec<Message> {
    pairs.iter().map(|(role, content)| Message::new(role, content)).collect()
}

fn bits(tokens: &Tokens) -> String {
    tokens.is_label.iter().map(|&is_label| if is_label { '1' } else { '0' }).collect()
}

#[test]
fn reference_masks_are_the_references() {
    let tokenizer = smollm2();
    let cases = fixture("reference_masks.json");
    let cases = cases.as_array().unwrap();
    assert_eq!(cases.len(), 120);
    for case in cases {
        let pairs: Vec<(String, String)> =
            serde_json::from_value(case["messages"].clone()).unwrap();
        let rule = MaskRule {
            label_mask: LabelMask::Reference,
            ignore_empty_think: case["ignore_empty_think"] == true,
            ..exact()
        };
        let tokens = tokenize_chat(&tokenizer, &messages(&pairs), rule, row_id).unwrap();
        assert_eq!(serde_json::json!(tokens.ids), case["ids"], "{pairs:?}");
        assert_eq!(bits(&tokens), case["is_label"], "{pairs:?}");
    }
}

/// `return_assistant_tokens_mask` with a template that says what the assistant wrote, on chats made to confuse a text search.
#[test]
fn exact_masks_are_those_of_transformers() {
    let tokenizer = smollm2();
    let cases = fixture("generation_masks.json");
    let cases = cases.as_array().unwrap();
    assert_eq!(cases.len(), 120);
    for case in cases {
        let pairs: Vec<(String, String)> =
            serde_json::from_value(case["messages"].clone()).unwrap();
        let tokens = tokenize_chat(&tokenizer, &messages(&pairs), exact(), row_id).unwrap();
        assert_eq!(serde_json::json!(tokens.ids), case["ids"], "{pairs:?}");
        assert_eq!(bits(&tokens), case["is_label"], "{pairs:?}");
    }
}

/// A template written twice: as Jinja, and as a function that knows where the replies are.
struct Template {
    jinja: &'static str,
    print: fn(&[Message]) -> Printed,
}

/// A chat as text, and where in it the replies with their ends of turn are, in bytes.
type Printed = (String, Vec<Range<usize>>);

/// Headers of special tokens, contents trimmed, no text between turns: the shape of Llama 3.
const TRIMMING: Template = Template {
    jinja: "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '<file_sep>\n\n' + message['content'] | trim + '<|im_end|>' }}{% endfor %}",
    print: |messages| {
        let (mut text, mut replies) = (String::new(), Vec::new());
        for message in messages {
            write!(text, "<|im_start|>{}<file_sep>\n\n", message.role()).unwrap();
            let start = text.len();
            text += message.content().trim();
            text += "<|im_end|>";
            if message.role() == "assistant" {
                replies.push(start..text.len());
            }
        }
        (text, replies)
    },
};

/// Reasoning split off and printed in the last turn only: the shape of Qwen3.
const THINKING: Template = Template {
    jinja: "{% for message in messages %}{% set content = message.content %}{{ '<|im_start|>' + message.role + '\n' }}\
        {% if message.role == 'assistant' %}{% set reasoning = '' %}{% if '</think>' in content %}\
        {% set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}\
        {% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}\
        {% if loop.last %}{{ '<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}\
        {% else %}{{ content }}{% endif %}{% else %}{{ content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}",
    print: |messages| {
        let (mut text, mut replies) = (String::new(), Vec::new());
        for (i, message) in messages.iter().enumerate() {
            writeln!(text, "<|im_start|>{}", message.role()).unwrap();
            let mut start = text.len();
            if message.role() == "assistant" {
                let (thought, answer) = match message.content().rsplit_once("</think>") {
                    Some((thought, answer)) => (Some(thought), answer.trim_start_matches('\n')),
                    None => (None, message.content()),
                };
                let is_last = i + 1 == messages.len();
                if is_last {
                    let reasoning =
                        thought.unwrap_or("").trim_start_matches("<think>").trim_matches('\n');
                    write!(text, "<think>\n{reasoning}\n</think>\n\n").unwrap();
                    if thought.is_none() {
                        start = text.len();
                    }
                }
                text += if is_last { answer.trim_start_matches('\n') } else { answer };
                replies.push(start..text.len() + "<|im_end|>".len());
            } else {
                text += message.content();
            }
            text += "<|im_end|>\n";
        }
        (text, replies)
    },
};

/// Plain text headers, and an end only after replies: the shape of Mistral and Zephyr.
const ONE_SIDED: Template = Template {
    jinja: "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ ' ' + message['content'] + '<|im_end|>' }}\
        {% else %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% endif %}{% endfor %}",
    print: |messages| {
        let (mut text, mut replies) = (String::new(), Vec::new());
        for message in messages {
            if message.role() == "assistant" {
                text += " ";
                let start = text.len();
                text += message.content();
                text += "<|im_end|>";
                replies.push(start..text.len());
            } else {
                write!(text, "[INST] {} [/INST]", message.content()).unwrap();
            }
        }
        (text, replies)
    },
};

/// The tokens that touch a reply, and nothing else.
fn expected(
    tokenizer: &Tokenizer,
    template: &Template,
    messages: &[Message],
) -> (Vec<u32>, String) {
    let (text, replies) = (template.print)(messages);
    let encoded = tokenizer.encode(&text).unwrap();
    let chars = |byte: usize| text[..byte].chars().count();
    let replies: Vec<Range<usize>> =
        replies.iter().map(|reply| chars(reply.start)..chars(reply.end)).collect();
    let is_label = encoded
        .offsets
        .iter()
        .map(|&(from, to)| replies.iter().any(|reply| from < reply.end && to > reply.start));
    (encoded.ids, is_label.map(|is_label| if is_label { '1' } else { '0' }).collect())
}

fn content() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        Just("yes".to_owned()),
        Just("user".to_owned()),
        Just("<|im_end|>".to_owned()),
        Just("a<|im_end|>\n<|im_start|>assistant\nb".to_owned()),
        Just("sternaPlaceholder0x0y".to_owned()),
        "[ \n]{0,2}[a-z<|>é👍🏽 ]{0,6}[ \n]{0,2}",
        any::<String>(),
    ]
}

fn reply() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => content(),
        1 => ("[a-z \n]{0,5}", "[ \n]{0,2}[a-z]{0,4}").prop_map(|(thought, answer)| format!("<think>{thought}</think>{answer}")),
        1 => Just("<think>\n\n</think>\n\nyes".to_owned()),
    ]
}

fn chat() -> impl Strategy<Value = Vec<Message>> {
    let turns = prop::collection::vec((content(), reply()), 1..4);
    (prop::option::of(content()), turns, prop::option::of(content())).prop_map(
        |(system, turns, last)| {
            let system = system.map(|content| Message::new("system", content));
            let turns = turns.into_iter().flat_map(|(question, reply)| {
                [Message::new("user", question), Message::new("assistant", reply)]
            });
            let last = last.map(|content| Message::new("user", content));
            system.into_iter().chain(turns).chain(last).collect()
        },
    )
}

fn check_template(template: &Template, adjust: impl Fn(&mut Message)) {
    let tokenizer = with_template(template.jinja);
    let config = ProptestConfig { cases: 300, ..ProptestConfig::default() };
    proptest!(config, |(mut chat in chat())| {
        chat.iter_mut().for_each(&adjust);
        let tokens = tokenize_chat(&tokenizer, &chat, exact(), row_id).unwrap();
        let (ids, is_label) = expected(&tokenizer, template, &chat);
        prop_assert_eq!(&tokens.ids, &ids, "the two templates differ");
        prop_assert_eq!(bits(&tokens), is_label, "{:?}", chat);
    });
}

#[test]
fn trimming_template() {
    // Jinja trims by Unicode's rule, and so does Rust; characters on which Python differs are tested beside the code.
    check_template(&TRIMMING, |message| {
        let content: String =
            message.content().chars().filter(|c| !('\x1c'..='\x1f').contains(c)).collect();
        message.set("content", content);
    });
}

#[test]
fn one_sided_template() {
    check_template(&ONE_SIDED, |_| ());
}

#[test]
fn thinking_template() {
    // Replies with several thoughts are cut by such templates in ways of their own; one thought at the start is the format.
    check_template(&THINKING, |message| {
        if !message.content().starts_with("<think>") {
            let content = message.content().replace("</think>", "");
            message.set("content", content);
        }
    });
}

/// The text of the labelled tokens.
fn labelled_text(tokenizer: &Tokenizer, tokens: &Tokens) -> String {
    let ids: Vec<u32> = tokens
        .ids
        .iter()
        .zip(&tokens.is_label)
        .filter(|(_, is_label)| **is_label)
        .map(|(&id, _)| id)
        .collect();
    tokenizer.decode(&ids).unwrap()
}

#[test]
fn empty_thoughts_are_left_out_when_asked() {
    let tokenizer = smollm2();
    let chat =
        [Message::new("user", "Hi"), Message::new("assistant", "<think>\n\n</think>\n\nHello.")];
    let tokens = tokenize_chat(&tokenizer, &chat, exact(), row_id).unwrap();
    assert_eq!(labelled_text(&tokenizer, &tokens), "<think>\n\n</think>\n\nHello.<|im_end|>");
    let rule = MaskRule { ignore_empty_think: true, ..exact() };
    let tokens = tokenize_chat(&tokenizer, &chat, rule.clone(), row_id).unwrap();
    assert_eq!(labelled_text(&tokenizer, &tokens), "Hello.<|im_end|>");
    let chat = [Message::new("user", "Hi"), Message::new("assistant", "<think>Hm.</think>Hello.")];
    let tokens = tokenize_chat(&tokenizer, &chat, rule, row_id).unwrap();
    assert_eq!(labelled_text(&tokenizer, &tokens), "<think>Hm.</think>Hello.<|im_end|>");
}

/// The end of turn is labelled with the whitespace before it, and with a second special token that ends the chat, but never with
/// the special token that opens the next turn.
#[test]
fn ends_of_turn() {
    let chat = [
        Message::new("user", "q"),
        Message::new("assistant", "one"),
        Message::new("user", "q"),
        Message::new("assistant", "two"),
    ];
    let end = "{% if loop.last %}<|endoftext|>{% endif %}{% endfor %}";
    let cases = [
        (
            "{% for message in messages %}<repo_name>{{ message.content }}<|im_end|>{% endfor %}",
            "one<|im_end|>two<|im_end|>",
        ),
        (
            "{% for message in messages %}<repo_name>{{ message.content }}\n<|im_end|>\n{% endfor %}",
            "one\n<|im_end|>two\n<|im_end|>",
        ),
        (
            "{% for message in messages %}<repo_name>{{ message.content }}<|im_end|>\nEND",
            "one<|im_end|>two<|im_end|>\n<|endoftext|>",
        ),
        ("{% for message in messages %}<repo_name>{{ message.content }}{% endfor %}", "onetwo"),
        // Text that ends every turn is all that can end one here.
        (
            "{% for message in messages %}<repo_name>{{ message.content }} ###\n{% endfor %}",
            "one ###two ###",
        ),
    ];
    for (template, labelled) in cases {
        let tokenizer = with_template(&template.replace("END", end));
        let tokens = tokenize_chat(&tokenizer, &chat, exact(), row_id).unwrap();
        assert_eq!(labelled_text(&tokenizer, &tokens), labelled, "{template}");
    }
}

#[test]
fn everything_is_a_label_without_a_mask() {
    let tokenizer = smollm2();
    let rule = MaskRule { mask_inputs: false, ..exact() };
    let tokens =
        tokenize_chat(&tokenizer, &[Message::new("user", "Hi")], rule.clone(), row_id).unwrap();
    // The first token has nothing before it in its own chat; in a pack, another chat would predict it.
    let (first, rest) = tokens.is_label.split_first().unwrap();
    assert!(!first && !rest.is_empty() && rest.iter().all(|&is_label| is_label));
    let rule = MaskRule { label_mask: LabelMask::Reference, ..rule };
    let tokens = tokenize_chat(&tokenizer, &[Message::new("user", "Hi")], rule, row_id).unwrap();
    assert!(tokens.is_label.iter().all(|&is_label| is_label));
}

#[test]
fn replies_that_cannot_be_located_are_refused() {
    let chat = [Message::new("user", "Hi"), Message::new("assistant", "Hello")];
    for (template, why) in [
        (
            "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
            "the template does not print it",
        ),
        (
            "{% for m in messages %}{{ m.content + ' ' + m.content }};{% endfor %}",
            "the template prints it more than once",
        ),
        (
            "{% for m in messages %}{{ m.content | length }}:{{ m.content }};{% endfor %}",
            "the template prints other text around it depending on what it says",
        ),
    ] {
        let error = tokenize_chat(&with_template(template), &chat, exact(), row_id).unwrap_err();
        assert!(matches!(error, Error::ReplyUnaligned { turn: 1, .. }));
        let expected = format!(
            "sample `3` of `chats` (`chats.jsonl:4`): reply `1` cannot be located in the rendered chat: {why}"
        );
        assert_eq!(error.to_string(), expected);
        assert!(error.hint().is_some());
    }
}

#[test]
fn template_failures_name_the_sample() {
    let template = "{% for m in messages %}{% if m.role == 'user' %}{{ raise_exception('no users') }}{% endif %}{% endfor %}";
    let chat = [Message::new("user", "Hi"), Message::new("assistant", "Hello")];
    let error = tokenize_chat(&with_template(template), &chat, exact(), row_id).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the chat template failed on sample `3` of `chats` (`chats.jsonl:4`)"
    );
    let source = std::error::Error::source(&error).unwrap();
    let chain = format!("{source} {:?}", source.source().map(ToString::to_string));
    assert!(chain.contains("no users"), "{chain}");
}

/// The tokenizer of SmolLM2 with a template of a well-known model and the special tokens that it writes.
fn with_known_template(name: &str) -> Tokenizer {
    const SPECIAL: [&str; 9] = [
        "<|begin_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<s>",
        "</s>",
        "<|User|>",
        "<|Assistant|>",
        "<|end_of_sentence|>",
    ];
    let template = fixture_path(&format!("../../../sterna-hf/tests/fixtures/chat/{name}.jinja"));
    tokenizer_with(&fs::read_to_string(template).unwrap(), &SPECIAL, &[])
}

/// What is labelled under the templates of well-known model families, on a chat with equal and thoughtful replies.
#[test]
fn known_templates() {
    let chat = [
        Message::new("user", "Say yes"),
        Message::new("assistant", "<think>\nHm.\n</think>\n\nyes "),
        Message::new("user", "yes"),
        Message::new("assistant", "<think>\nOK.\n</think>\n\nyes "),
    ];
    let thoughtful =
        |end: &str| format!("<think>\nHm.\n</think>\n\nyes{end}<think>\nOK.\n</think>\n\nyes{end}");
    for (name, labelled) in [
        ("chatml", thoughtful(" <|im_end|>")),
        ("smollm2", thoughtful(" <|im_end|>")),
        ("qwen25", thoughtful(" <|im_end|>")),
        // Says itself what is generated: headers and newlines too.
        (
            "smollm3",
            thoughtful(" <|im_end|>\n").replace("<think>", "<|im_start|>assistant\n<think>"),
        ),
        ("zephyr", thoughtful(" <|im_end|>")),
        ("generation", thoughtful(" <|im_end|>\n\n")),
        // Trims replies.
        ("llama31", thoughtful("<|eot_id|>")),
        // The space before a reply is in one token with its first character.
        ("llama2", thoughtful(" <|im_end|>").replace("<think>", " <think>")),
        ("mistral", thoughtful("<|im_end|>").replace("<think>", " <think>")),
        // Print the last thought only, and none.
        ("qwen3", "yes <|im_end|><think>\nOK.\n</think>\n\nyes <|im_end|>".to_owned()),
        ("deepseek", "\n\nyes <|end_of_sentence|>".repeat(2)),
    ] {
        let tokenizer = with_known_template(name);
        let tokens = tokenize_chat(&tokenizer, &chat, exact(), row_id).unwrap();
        assert_eq!(labelled_text(&tokenizer, &tokens), labelled, "{name}");
    }
}
