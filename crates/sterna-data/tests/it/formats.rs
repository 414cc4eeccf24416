//! Formats of rows, from files to tokens: the text that the model sees, and the text that it is trained on, written out by hand.

use std::{fs, path::PathBuf};

use serde_json::{Value, json};
use sterna_data::{
    Datasets, Error, IGNORE_INDEX, error::RowId, format::Preference, prepare,
    rng::numpy_permutation,
};
use sterna_hf::{Message, Tokenizer};

use crate::support::{fixture_path, real_inputs, recipe_from_json};

/// A template that prints everything that a row can say.
const TEMPLATE: &str = "{% if tools %}{{ 'TOOLS' + (tools | tojson) + '\n' }}{% endif %}\
    {% if mood is defined %}{{ 'MOOD ' + mood + '\n' }}{% endif %}\
    {% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}\
    {% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}{{ m.content or '' }}\
    {% for t in m.tool_calls or [] %}{{ '<call>' + (t.function | tojson) + '</call>' }}{% endfor %}\
    {{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// The tokenizer of `SmolLM2`, another template, and a folder for rows.
struct Place {
    folder: tempfile::TempDir,
    tokenizer: Tokenizer,
}

impl Place {
    fn new() -> Self {
        Self::with_template(TEMPLATE)
    }

    fn with_template(template: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let from = real_inputs().join("SmolLM2-135M-Instruct");
        let model = folder.path().join("model");
        fs::create_dir(&model).unwrap();
        fs::copy(from.join("tokenizer.json"), model.join("tokenizer.json")).unwrap();
        let config = fs::read_to_string(from.join("tokenizer_config.json")).unwrap();
        let mut config: Value = serde_json::from_str(&config).unwrap();
        config["chat_template"] = template.into();
        fs::write(model.join("tokenizer_config.json"), config.to_string()).unwrap();
        let tokenizer = Tokenizer::from_dir(&model).unwrap();
        Self { folder, tokenizer }
    }

    /// Prepares `rows` with keys of the source and of `data`.
    fn prepare(&self, rows: &[Value], source: &Value, data: &Value) -> Result<Datasets, Error> {
        let path = self.folder.path().join("rows.jsonl");
        let lines: String = rows.iter().map(|row| row.to_string() + "\n").collect();
        fs::write(&path, lines).unwrap();
        self.prepare_file(&path, source, data)
    }

    fn prepare_file(
        &self,
        path: &std::path::Path,
        source: &Value,
        data: &Value,
    ) -> Result<Datasets, Error> {
        self.prepare_as(&json!({}), path, source, data)
    }

    /// With other keys of the recipe too.
    fn prepare_as(
        &self,
        keys: &Value,
        path: &std::path::Path,
        source: &Value,
        data: &Value,
    ) -> Result<Datasets, Error> {
        let mut entry = json!({"name_or_path": path});
        entry.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
        let cache_dir = self.folder.path().join("cache");
        let mut section = json!({"sources": [entry], "max_length": 4096, "cache_dir": cache_dir});
        section.as_object_mut().unwrap().extend(data.as_object().unwrap().clone());
        let mut recipe = json!({"model": {"name_or_path": "model"}, "data": section});
        recipe.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        prepare(&recipe_from_json(&recipe), 4096, &self.tokenizer, 1, &mut |_| ())
    }

    /// The text of each sample in the order of the rows, and the texts with labels, with `|` between them.
    fn texts(&self, data: &Datasets) -> Vec<(String, String)> {
        let mut texts = vec![(String::new(), String::new()); data.train.len()];
        for (place, row) in numpy_permutation(42, data.train.len()).into_iter().enumerate() {
            let sample = data.train.sample(place).unwrap();
            let mut runs: Vec<Vec<u32>> = Vec::new();
            let mut was_label = false;
            for (&id, &label) in sample.input_ids.iter().zip(&sample.labels) {
                let is_label = i64::from(label) != IGNORE_INDEX;
                if is_label && !was_label {
                    runs.push(Vec::new());
                }
                if is_label {
                    assert_eq!(u32::try_from(label), Ok(id));
                    runs.last_mut().unwrap().push(id);
                }
                was_label = is_label;
            }
            let labelled: Vec<String> =
                runs.iter().map(|run| self.tokenizer.decode(run).unwrap()).collect();
            texts[row] = (self.tokenizer.decode(&sample.input_ids).unwrap(), labelled.join("|"));
        }
        texts
    }

    #[track_caller]
    fn check(&self, rows: &[Value], source: &Value, data: &Value, expected: &[(&str, &str)]) {
        let prepared = match self.prepare(rows, source, data) {
            Ok(prepared) => prepared,
            Err(error) => panic!("{error}: {rows:?}"),
        };
        self.compare(&prepared, expected);
    }

    #[track_caller]
    fn compare(&self, prepared: &Datasets, expected: &[(&str, &str)]) {
        let texts = self.texts(prepared);
        let texts: Vec<(&str, &str)> =
            texts.iter().map(|(text, labelled)| (text.as_str(), labelled.as_str())).collect();
        assert_eq!(texts, expected);
    }

    /// The message and the hint of what is refused.
    #[track_caller]
    fn refused(&self, rows: &[Value], source: &Value, data: &Value) -> String {
        let error = match self.prepare(rows, source, data) {
            Ok(prepared) => panic!("{:?}", self.texts(&prepared)),
            Err(error) => error,
        };
        let path = self.folder.path().join("rows.jsonl");
        let message = error.to_string().replace(path.to_str().unwrap(), "ROWS");
        format!("{message} / {}", error.hint().unwrap_or_default())
    }
}

/// Why rows were dropped, and how many.
fn dropped(data: &Datasets) -> Vec<(&str, usize)> {
    let stats = &data.report.train.sources[0].stats;
    stats.dropped.iter().map(|(why, count)| (why.as_str(), *count)).collect()
}

fn left_out(data: &Datasets) -> Vec<(&str, usize)> {
    let stats = &data.report.train.sources[0].stats;
    stats.left_out.iter().map(|(why, count)| (why.as_str(), *count)).collect()
}

/// "hi" and "ho" as the template prints them.
const HI_HO: (&str, &str) =
    ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nho<|im_end|>\n", "ho<|im_end|>");

fn hi_ho() -> Value {
    json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}])
}

#[test]
fn messages_are_recognised_under_each_name() {
    let place = Place::new();
    let none = json!({});
    for column in ["messages", "conversations", "conversation", "dialog"] {
        place.check(&[json!({"id": 1, column: hi_ho()})], &none, &none, &[HI_HO]);
    }
    let row =
        json!({"turns": hi_ho(), "messages": [{"role": "critic", "content": "x"}], "text": "x"});
    place.check(std::slice::from_ref(&row), &json!({"messages_key": "turns"}), &none, &[HI_HO]);
    place.check(&[row], &json!({"format": "messages", "messages_key": "turns"}), &none, &[HI_HO]);
    // Of the first that is there, whatever else is.
    let row = json!({"text": "x", "prompt": "x", "completion": "x", "messages": hi_ho()});
    place.check(&[row], &none, &none, &[HI_HO]);
    // A list as JSON text.
    place.check(&[json!({"messages": hi_ho().to_string()})], &none, &none, &[HI_HO]);
    let mapping = json!({"role_mapping": {"user": "messages.role.user", "assistant": "messages.role.assistant"}});
    place.check(&[json!({"messages": hi_ho().to_string()})], &mapping, &none, &[HI_HO]);
}

#[test]
fn keys_and_roles_of_sharegpt_become_those_of_templates() {
    let place = Place::new();
    let none = json!({});
    for (asks, replies) in [
        ("human", "gpt"),
        ("user", "assistant"),
        ("prompter", "model"),
        ("user", "bot"),
        ("human", "chatgpt"),
        ("human", "bard"),
        ("human", "bing"),
        ("human", "ai"),
    ] {
        let turns = json!([{"from": asks, "value": "hi"}, {"from": replies, "value": "ho"}]);
        place.check(&[json!({"conversations": turns})], &none, &none, &[HI_HO]);
    }
    // All four keys at once, as Parquet files have them.
    let turns = json!([
        {"role": null, "content": null, "from": "human", "value": "hi"},
        {"from": null, "value": null, "role": "assistant", "content": "ho"},
    ]);
    place.check(
        &[json!({"conversations": turns})],
        &json!({"format": "sharegpt"}),
        &none,
        &[HI_HO],
    );
    // Calls of tools, written as text or as an object, alone or several.
    let call = json!({"name": "depth", "arguments": {"lake": "Como"}});
    for written in [
        json!(call.to_string()),
        call.clone(),
        json!([call]).to_string().into(),
        json!({"type": "function", "function": call}),
    ] {
        for (calls, result) in [("function_call", "observation"), ("tool_call", "tool_response")] {
            let row = json!({"conversations": [
                {"from": "human", "value": "How deep?"}, {"from": calls, "value": written},
                {"from": result, "value": "410"}, {"from": "gpt", "value": "410 m."},
            ]});
            if written.is_object() {
                // What is not text has to be the value of `tool_calls`.
                let said = place.refused(&[row], &none, &none);
                assert!(
                    said.contains("`conversations[1].value` is an object, required: text"),
                    "{said}"
                );
                continue;
            }
            let text = "<|im_start|>user\nHow deep?<|im_end|>\n<|im_start|>assistant\n\
                <call>{\"name\": \"depth\", \"arguments\": {\"lake\": \"Como\"}}</call><|im_end|>\n\
                <|im_start|>tool\n410<|im_end|>\n<|im_start|>assistant\n410 m.<|im_end|>\n";
            let labelled = "<call>{\"name\": \"depth\", \"arguments\": {\"lake\": \"Como\"}}</call><|im_end|>|410 m.<|im_end|>";
            place.check(&[row], &none, &none, &[(text, labelled)]);
        }
    }
}

#[test]
fn the_column_system_leads_the_chat() {
    let place = Place::new();
    let none = json!({});
    let text = "<|im_start|>system\nBe brief.<|im_end|>\n\
        <|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nho<|im_end|>\n";
    let rows = [
        json!({"system": "Be brief.", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}),
        json!({"system": "", "conversations": hi_ho()}),
        json!({"system": null, "conversations": hi_ho()}),
        json!({"system": "Be brief.", "conversations": [
            {"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"},
        ]}),
    ];
    let expected = [(text, "ho<|im_end|>"), HI_HO, HI_HO, (text, "ho<|im_end|>")];
    place.check(&rows, &none, &none, &expected);
    let rows = [
        json!({"system": "", "messages": hi_ho()}),
        json!({"system": "Be kind.", "messages": [{"role": "developer", "content": "Be brief."}]}),
    ];
    assert_eq!(
        place.refused(&rows, &none, &none),
        "sample `1` of `ROWS` (`ROWS:2`): `system` differs from the message of role `developer`, required: one of them / "
    );
    assert_eq!(
        place.refused(&[json!({"system": ["x"], "messages": hi_ho()})], &none, &none),
        "sample `0` of `ROWS` (`ROWS:1`): `system` is a list, required: text / "
    );
}

#[test]
fn prompt_and_completion_are_text_or_chat() {
    let place = Place::new();
    let none = json!({});
    let rows = [
        json!({"prompt": "Hello", "completion": " world, yes"}),
        json!({"prompt": "", "completion": "Hello world"}),
        json!({"prompt": "Is it 7? ", "completion": true}),
        json!({"prompt": hi_ho(), "completion": [{"role": "user", "content": "he"}, {"role": "assistant", "content": "hu"}]}),
    ];
    let chat = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nho<|im_end|>\n\
        <|im_start|>user\nhe<|im_end|>\n<|im_start|>assistant\nhu<|im_end|>\n";
    let expected = [
        ("Hello world, yes<|im_end|>", " world, yes<|im_end|>"),
        // Nothing in the sample predicts its first token.
        ("Hello world<|im_end|>", " world<|im_end|>"),
        // The space is a token together with what follows it.
        ("Is it 7? True<|im_end|>", " True<|im_end|>"),
        (chat, "hu<|im_end|>"),
    ];
    place.check(&rows, &none, &none, &expected);
    let row = json!({"prompt": "Hello", "completion": " world", "messages": hi_ho()});
    let by_key = json!({"format": "prompt_completion"});
    place.check(&[row], &by_key, &none, &[("Hello world<|im_end|>", " world<|im_end|>")]);
    let whole = json!({"mask_inputs": false});
    place.check(
        &rows[..1],
        &none,
        &whole,
        &[("Hello world, yes<|im_end|>", " world, yes<|im_end|>")],
    );

    let rows = [
        json!({"prompt": "q", "completion": "a"}),
        json!({"prompt": null, "completion": "a"}),
        json!({"prompt": "q", "completion": null}),
        json!({"prompt": "q", "completion": " \n"}),
        json!({"prompt": hi_ho(), "completion": []}),
        json!({"completion": "a"}),
        json!({"prompt": hi_ho(), "completion": [{"role": "user", "content": "he"}]}),
    ];
    let data = place.prepare(&rows, &none, &none).unwrap();
    let expected = [
        ("`completion` is empty", 2),
        ("`completion` is null", 1),
        ("`prompt` is null", 2),
        ("no label", 1),
    ];
    assert_eq!((data.train.len(), dropped(&data)), (1, expected.to_vec()));
    assert_eq!(
        place.refused(&[json!({"prompt": "q", "completion": hi_ho()})], &none, &none),
        "sample `0` of `ROWS` (`ROWS:1`): `prompt` is text and `completion` a list, required: text and text, or two lists of messages / "
    );
}

#[test]
fn alpaca_is_a_question_with_what_came_before() {
    let place = Place::new();
    let none = json!({});
    let history = json!([["hi", "ho"], ["he", "hu"]]);
    let rows = [
        json!({"instruction": "Add.", "input": "2 3", "output": "5", "text": "x"}),
        json!({"instruction": "Add.", "input": "2 3", "output": 5, "system": "Be brief.", "history": history}),
        json!({"instruction": "Add.", "input": null, "output": "5", "history": history.to_string()}),
        json!({"instruction": "", "input": "2 + 3?", "output": "5", "history": ""}),
    ];
    let history = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nho<|im_end|>\n\
        <|im_start|>user\nhe<|im_end|>\n<|im_start|>assistant\nhu<|im_end|>\n";
    let question = |text: &str| {
        format!("<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n5<|im_end|>\n")
    };
    let texts = [
        question("Add.\n2 3"),
        format!("<|im_start|>system\nBe brief.<|im_end|>\n{history}{}", question("Add.\n2 3")),
        format!("{history}{}", question("Add.")),
        question("2 + 3?"),
    ];
    let with_history = "ho<|im_end|>|hu<|im_end|>|5<|im_end|>";
    let expected = [
        (texts[0].as_str(), "5<|im_end|>"),
        (&texts[1], with_history),
        (&texts[2], with_history),
        (&texts[3], "5<|im_end|>"),
    ];
    place.check(&rows, &none, &none, &expected);
    place.check(&rows, &json!({"format": "alpaca"}), &none, &expected);
    // The last reply of a row that has several.
    place.check(&rows[1..2], &none, &json!({"train_on": "last"}), &[(&texts[1], "5<|im_end|>")]);
    let tools = json!({"instruction": "Add.", "output": "5", "tools": "[{\"name\": \"add\"}]"});
    let text = format!("TOOLS[{{\"name\": \"add\"}}]\n{}", question("Add."));
    place.check(&[tools], &none, &none, &[(&text, "5<|im_end|>")]);

    let rows = [
        json!({"instruction": "q", "output": "a"}),
        json!({"instruction": "", "input": "", "output": "a"}),
        json!({"instruction": "q", "output": null, "history": [["hi", "ho"]]}),
        json!({"instruction": "q", "output": ""}),
    ];
    let data = place.prepare(&rows, &none, &none).unwrap();
    assert_eq!(dropped(&data), [("`instruction` is empty", 1), ("`output` is empty", 2)]);

    let history = |history: Value| json!({"instruction": "q", "output": "a", "history": history});
    for (bad, message) in [
        (json!("no"), "`history` is text that is not JSON, required: a list, or one as JSON text"),
        (json!({"a": 1}), "`history` is an object, required: a list, or one as JSON text"),
        (json!(["hi"]), "`history` has text, required: pairs of texts"),
        (json!([["hi"]]), "`history` has a list of `1` items, required: pairs of texts"),
        (json!([["hi", 3]]), "`history` has a list of `2` items, required: pairs of texts"),
    ] {
        let said = place.refused(&[history(json!([])), history(bad)], &none, &none);
        assert_eq!(said, format!("sample `1` of `ROWS` (`ROWS:2`): {message} / "));
    }
}

#[test]
fn text_is_labelled_but_for_its_first_token() {
    let place = Place::new();
    let none = json!({});
    let rows = [
        json!({"text": "Hello world"}),
        json!({"text": null}),
        json!({"text": " \n"}),
        json!({"id": 4}),
    ];
    let data = place.prepare(&rows, &none, &none).unwrap();
    place.compare(&data, &[("Hello world<|im_end|>", " world<|im_end|>")]);
    assert_eq!(dropped(&data), [("`text` is empty", 1), ("`text` is null", 2)]);
    let row = json!({"body": "Hello world", "messages": hi_ho(), "tools": "hammer and nails"});
    for source in [json!({"text_key": "body"}), json!({"text_key": "body", "format": "text"})] {
        place.check(
            std::slice::from_ref(&row),
            &source,
            &none,
            &[("Hello world<|im_end|>", " world<|im_end|>")],
        );
    }
    let row = json!({"text": ["a"]});
    assert_eq!(
        place.refused(&[row], &none, &none),
        "sample `0` of `ROWS` (`ROWS:1`): `text` is a list, required: text / set content_key of the source to the field that holds the text"
    );
}

#[test]
fn tokens_have_labels_or_masks() {
    let place = Place::new();
    let none = json!({});
    // `Hello`, ` world`, `,` and the end of turn.
    let ids = json!([19556, 905, 28, 2]);
    let text = "Hello world,<|im_end|>";
    let rows = [
        json!({"input_ids": ids}),
        json!({"input_ids": ids, "labels": [-100, -100, 28, 2]}),
        json!({"input_ids": ids, "completion_mask": [0, 1, 1, 0]}),
        json!({"input_ids": ids, "completion_mask": [0, 1, 1, 1], "assistant_masks": [false, true, false, true]}),
        json!({"input_ids": ids, "labels": null, "attention_mask": [1, 1, 1, 1]}),
        json!({"input_ids": [2, 19556, 905, 28, 2, 2, 2], "attention_mask": [0, 1, 1, 1, 1, 0, 0]}),
    ];
    let all = " world,<|im_end|>";
    let expected = [
        (text, all),
        (text, ",<|im_end|>"),
        (text, " world,"),
        (text, " world|<|im_end|>"),
        (text, all),
        (text, all),
    ];
    place.check(&rows, &none, &none, &expected);
    place.check(&rows, &json!({"format": "tokens"}), &none, &expected);

    let rows = [
        rows[0].clone(),
        json!({"input_ids": null}),
        json!({"input_ids": []}),
        json!({"input_ids": ids, "labels": [-100, -100, -100, -100]}),
        json!({"input_ids": ids, "attention_mask": [0, 0, 0, 0]}),
    ];
    let data = place.prepare(&rows, &none, &none).unwrap();
    assert_eq!(dropped(&data), [("`input_ids` is null", 1), ("no label", 1), ("no token", 2)]);

    for (bad, message) in [
        (json!({"input_ids": "1 2"}), "`input_ids` is text, required: a list of integers"),
        (json!({"input_ids": [1, "2"]}), "`input_ids` has text, required: a list of integers"),
        (json!({"input_ids": [1.5]}), "`input_ids` has a number, required: a list of integers"),
        (json!({"input_ids": [1, -2]}), "`input_ids` has a negative id, required: token ids"),
        (
            json!({"input_ids": [1, 49152]}),
            "`input_ids` has `49152`, required: ids of the tokenizer",
        ),
        (
            json!({"input_ids": [1, 2], "labels": [1]}),
            "`labels` has `1` items, `input_ids` `2`, required: as many",
        ),
        (
            json!({"input_ids": [1, 2], "labels": [-100, 3]}),
            "`labels[1]` is `3` and `input_ids[1]` `2`, required: the same id, or -100",
        ),
        (
            json!({"input_ids": [1, 2], "attention_mask": [1]}),
            "`attention_mask` has `1` items, `input_ids` `2`, required: as many",
        ),
        (
            json!({"input_ids": [1, 2, 3], "attention_mask": [1, 0, 1]}),
            "`attention_mask` has a 0 between others, required: padding on the left or the right",
        ),
    ] {
        let said = place.refused(&[json!({"input_ids": [1, 2]}), bad], &none, &none);
        assert_eq!(said, format!("sample `1` of `ROWS` (`ROWS:2`): {message} / "));
    }
}

/// A reply without a pair has an empty sample in place of the other: behind a good one, before a bad one.
#[test]
fn replies_without_pairs_stand_where_their_label_says() {
    let place = Place::new();
    let chat = |role: &str, text: &str| json!([{"role": role, "content": text}]);
    let rows = [
        json!({"prompt": "Hello", "completion": " world", "label": true}),
        json!({"prompt": "Hello", "completion": " there", "label": 0}),
        json!({"prompt": chat("user", "hi"), "completion": chat("assistant", "ho"), "label": false}),
        json!({"prompt": "Hello", "completion": null, "label": true}),
    ];
    let keys = json!({"type": "dpo", "loss_type": "apo_zero_unpaired"});
    let path = place.folder.path().join("rows.jsonl");
    let prepare = |rows: &[Value]| {
        let lines: String = rows.iter().map(|row| row.to_string() + "\n").collect();
        fs::write(&path, lines).unwrap();
        place.prepare_as(&keys, &path, &json!({}), &json!({}))
    };
    let data = prepare(&rows).unwrap();
    let hi_ho = (HI_HO.0, HI_HO.1);
    let texts = [
        ("Hello world<|im_end|>", " world<|im_end|>"),
        ("Hello there<|im_end|>", " there<|im_end|>"),
        hi_ho,
    ];
    place.compare(&data, &texts);
    assert_eq!(dropped(&data), [("`completion` is null", 1)]);
    let mut is_good = [false; 3];
    for (place, row) in numpy_permutation(42, 3).into_iter().enumerate() {
        let seqlens = data.train.sample(place).unwrap().seqlens;
        assert!(seqlens.len() == 2 && seqlens.contains(&0), "{seqlens:?}");
        is_good[row] = seqlens[1] == 0;
    }
    assert_eq!(is_good, [true, false, false]);
    assert_eq!(data.report.train.sources[0].stats.samples_without_label, 0);

    for (label, found) in [(json!("good"), "text"), (json!(0.5), "a number"), (json!(null), "null")]
    {
        let row = json!({"prompt": "Hello", "completion": " world", "label": label});
        let said = prepare(&[row]).unwrap_err().to_string();
        let required = "`true` for a good completion or `false` for a bad one";
        assert!(said.ends_with(&format!("`label` is {found}, required: {required}")), "{said}");
    }
}

#[test]
fn what_columns_say_can_be_refused() {
    let place = Place::new();
    let none = json!({});
    let preferences = "required: chats, texts or tokens for `type: sft` / \
        to train on other columns, set format, messages_key or role_mapping of the source";
    let pair = json!({"prompt": "q", "chosen": "a", "rejected": "b", "messages": hi_ho()});
    for source in [none.clone(), json!({"format": "preference"})] {
        let said = place.refused(std::slice::from_ref(&pair), &source, &none);
        let expected = "source `ROWS` has preferences (`chosen` and `rejected`), ";
        assert_eq!(said, format!("{expected}{preferences}"));
    }
    place.check(std::slice::from_ref(&pair), &json!({"format": "messages"}), &none, &[HI_HO]);
    place.check(&[pair], &json!({"messages_key": "messages"}), &none, &[HI_HO]);
    // KTO's rows: half of them are replies that nobody wants.
    let rows = [json!({"prompt": "Hello", "completion": " world", "label": false})];
    assert_eq!(
        place.refused(&rows, &none, &none),
        format!(
            "source `ROWS` has preferences (`prompt`, `completion` and `label`), {preferences}"
        )
    );
    let by_key = json!({"format": "prompt_completion"});
    place.check(&rows, &by_key, &none, &[("Hello world<|im_end|>", " world<|im_end|>")]);

    assert_eq!(
        place.refused(&[json!({"question": "q", "answer": "a"})], &none, &none),
        "source `ROWS` has columns of no known format: `question`, `answer` / \
         set format of the source, or messages_key or text_key to the column that holds messages or text, or role_mapping"
    );
    let by_role = json!({"role_mapping": {"user": "question", "assistant": "answer"}});
    place.check(&[json!({"question": "hi", "answer": "ho"})], &by_role, &none, &[HI_HO]);
    place.check(&[json!({"user": "hi", "assistant": "ho"})], &none, &none, &[HI_HO]);

    let name_a_column = "name a column that is there, with role_mapping, messages_key, tools_key or text_key of the source";
    for (source, column) in [
        (json!({"messages_key": "turns"}), "turns"),
        (json!({"text_key": "body"}), "body"),
        (json!({"tools_key": "functions"}), "functions"),
        (json!({"format": "alpaca"}), "instruction"),
        (json!({"format": "tokens"}), "input_ids"),
    ] {
        assert_eq!(
            place.refused(&[json!({"messages": hi_ho()})], &source, &none),
            format!(
                "source `ROWS` has no column `{column}`, which the recipe or its format names; available: `messages` / {name_a_column}"
            )
        );
    }
    for (row, key, format) in [
        (json!({"text": "x"}), "tools_key", "text in column `text`"),
        (json!({"input_ids": [1, 2]}), "content_key", "tokens in column `input_ids`"),
        (
            json!({"instruction": "q", "output": "a"}),
            "content_key",
            "`instruction`, `input` and `output` as chats",
        ),
    ] {
        assert_eq!(
            place.refused(&[row], &json!({key: "x"}), &none),
            format!(
                "source `ROWS` sets {key}, which is not read: its rows are {format} / remove it, or set format of the source"
            )
        );
    }
}

#[test]
fn each_row_shows_its_own_tools() {
    let place = Place::new();
    let depth = r#"{"type": "function", "function": {"name": "depth", "parameters": {"type": "object", "properties": {"lake": {"type": "string"}}, "required": ["lake"]}}}"#;
    let add = r#"{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}, "required": ["a", "b"]}}}"#;
    let texts = [
        format!(
            "TOOLS[{depth}]\n<|im_start|>user\nHow deep is Como?<|im_end|>\n<|im_start|>assistant\n\
             <call>{{\"name\": \"depth\", \"arguments\": {{\"lake\": \"Como\"}}}}</call><|im_end|>\n\
             <|im_start|>tool\n410<|im_end|>\n<|im_start|>assistant\n410 m.<|im_end|>\n"
        ),
        format!(
            "TOOLS[{add}]\n<|im_start|>user\n2 + 3?<|im_end|>\n<|im_start|>assistant\n\
             Let me see.<call>{{\"name\": \"add\", \"arguments\": {{\"a\": 2, \"b\": 3}}}}</call><|im_end|>\n\
             <|im_start|>tool\n5<|im_end|>\n<|im_start|>assistant\n5.<|im_end|>\n"
        ),
    ];
    let expected = [
        (
            texts[0].as_str(),
            "<call>{\"name\": \"depth\", \"arguments\": {\"lake\": \"Como\"}}</call><|im_end|>|410 m.<|im_end|>",
        ),
        (
            &texts[1],
            "Let me see.<call>{\"name\": \"add\", \"arguments\": {\"a\": 2, \"b\": 3}}</call><|im_end|>|5.<|im_end|>",
        ),
        HI_HO,
    ];
    for name in ["tools.jsonl", "tools.parquet"] {
        let path = fixture_path("formats").join(name);
        let data = place.prepare_file(&path, &json!({}), &json!({})).unwrap();
        place.compare(&data, &expected);
    }
    // The same, with every list and object as JSON text.
    let rows = fs::read_to_string(fixture_path("formats").join("tools.jsonl")).unwrap();
    let as_text = |line: &str| {
        let mut row: Value = serde_json::from_str(line).unwrap();
        for message in row["messages"].as_array_mut().unwrap() {
            if let Some(calls) = message.get_mut("tool_calls") {
                *calls = calls.to_string().into();
            }
        }
        let tools = &mut row["tools"];
        *tools = if tools.is_null() { "".into() } else { tools.to_string().into() };
        row
    };
    let rows: Vec<Value> = rows.lines().map(as_text).collect();
    place.check(&rows, &json!({}), &json!({}), &expected);
    // Another column, and a list of JSON texts.
    let rows: Vec<Value> = rows
        .into_iter()
        .map(|mut row| {
            let tools = row.as_object_mut().unwrap().shift_remove("tools").unwrap();
            let tools: Vec<Value> =
                serde_json::from_str(tools.as_str().unwrap()).unwrap_or_default();
            row["functions"] = tools.iter().map(Value::to_string).collect();
            row
        })
        .collect();
    place.check(&rows, &json!({"tools_key": "functions"}), &json!({}), &expected);
}

#[test]
fn parquet_gives_what_json_lines_give() {
    let place = Place::new();
    for (name, num_rows) in [("sharegpt", 2), ("alpaca", 2), ("tokens", 2), ("tools", 3)] {
        let texts = |ending: &str| {
            let path: PathBuf = fixture_path("formats").join(format!("{name}.{ending}"));
            place.texts(&place.prepare_file(&path, &json!({}), &json!({})).unwrap())
        };
        let from_json = texts("jsonl");
        assert_eq!(from_json.len(), num_rows);
        assert_eq!(texts("parquet"), from_json, "{name}");
    }
    let path = fixture_path("formats").join("sharegpt.parquet");
    let data = place.prepare_file(&path, &json!({}), &json!({})).unwrap();
    let text = "TOOLS[{\"type\": \"function\", \"function\": {\"name\": \"depth\", \"parameters\": {\"type\": \"object\", \"properties\": {\"lake\": {\"type\": \"string\"}}, \"required\": [\"lake\"]}}}]\n\
        <|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHow deep is Como?<|im_end|>\n<|im_start|>assistant\n\
        <call>{\"name\": \"depth\", \"arguments\": {\"lake\": \"Como\"}}</call><|im_end|>\n\
        <|im_start|>tool\n410<|im_end|>\n<|im_start|>assistant\n410 m.<|im_end|>\n";
    let labelled = "<call>{\"name\": \"depth\", \"arguments\": {\"lake\": \"Como\"}}</call><|im_end|>|410 m.<|im_end|>";
    place.compare(&data, &[(text, labelled), HI_HO]);
}

#[test]
fn variables_of_a_row_replace_those_of_the_recipe() {
    let place = Place::new();
    let row = |kwargs: Value| json!({"messages": hi_ho(), "chat_template_kwargs": kwargs});
    let rows = [
        row(json!({"mood": "glad"})),
        row(json!({"other": 1})),
        row(json!(null)),
        row(json!("{\"mood\": \"odd\"}")),
    ];
    let with_mood = |mood: &str| format!("MOOD {mood}\n{}", HI_HO.0);
    let texts = ["glad", "calm", "calm", "odd"].map(with_mood);
    let expected: Vec<(&str, &str)> =
        texts.iter().map(|text| (text.as_str(), "ho<|im_end|>")).collect();
    let recipe = json!({"chat_template_kwargs": {"mood": "calm"}});
    place.check(&rows, &json!({}), &recipe, &expected);
    place.check(&rows[1..2], &json!({}), &json!({}), &[HI_HO]);
    // A prompt and its completion have them too.
    let row = json!({
        "prompt": [{"role": "user", "content": "hi"}], "completion": [{"role": "assistant", "content": "ho"}],
        "chat_template_kwargs": {"mood": "glad"},
    });
    place.check(&[row], &json!({}), &recipe, &expected[..1]);
}

/// A question with a reply, twice, and the keys of each reply.
fn two_turns(first: &Value, last: &Value) -> Value {
    let reply = |text: &str, flags: &Value| {
        let mut message = json!({"role": "assistant", "content": text});
        message.as_object_mut().unwrap().extend(flags.as_object().unwrap().clone());
        message
    };
    json!({"messages": [
        {"role": "user", "content": "hi"}, reply("ho", first), {"role": "user", "content": "he"}, reply("hu", last),
    ]})
}

#[test]
fn flags_choose_replies() {
    let place = Place::new();
    let labelled = |rows: &[Value], train_on: &str| {
        let data = place.prepare(rows, &json!({}), &json!({"train_on": train_on})).unwrap();
        place.texts(&data).into_iter().map(|(_, labelled)| labelled).collect::<Vec<_>>()
    };
    let none = json!({});
    for (on, off) in [
        (json!({"train": true}), json!({"train": false})),
        (json!({"weight": 1}), json!({"weight": 0})),
        (json!({"weight": 1.0}), json!({"weight": 0.0})),
        (json!({"loss": true, "train": 1}), json!({"loss": false, "train": null})),
    ] {
        let rows = [two_turns(&on, &off), two_turns(&none, &off), two_turns(&on, &none)];
        assert_eq!(
            labelled(&rows, "all"),
            ["ho<|im_end|>", "ho<|im_end|>", "ho<|im_end|>|hu<|im_end|>"]
        );
        assert_eq!(labelled(&rows[..], "marked"), ["ho<|im_end|>"; 2], "the second has no mark");
        assert_eq!(labelled(&rows[2..], "last"), ["hu<|im_end|>"]);
    }
    // A flag takes a label away from the last reply, and gives none to another.
    let rows =
        [two_turns(&json!({"train": true}), &json!({"train": false})), two_turns(&none, &none)];
    let data = place.prepare(&rows, &none, &json!({"train_on": "last"})).unwrap();
    assert_eq!(dropped(&data), [("no label", 1)]);
    // A completion has labels, its prompt none, whatever its flags.
    let row = json!({
        "prompt": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho", "train": true}],
        "completion": [{"role": "user", "content": "he"}, {"role": "assistant", "content": "hu", "train": true}],
    });
    assert_eq!(labelled(&[row], "marked"), ["hu<|im_end|>"]);
    // The flags of a role mapping's messages.
    let mapping = json!({"role_mapping": {"user": "messages.role.user", "assistant": "messages.role.assistant"}});
    let rows = [two_turns(&json!({"train": false}), &none)];
    let data = place.prepare(&rows, &mapping, &none).unwrap();
    assert_eq!(place.texts(&data)[0].1, "hu<|im_end|>");
}

#[test]
fn flags_that_say_nothing_clear_are_refused() {
    let place = Place::new();
    let none = json!({});
    let good = two_turns(&none, &none);
    for (flags, message) in [
        (
            json!({"weight": 0.5}),
            "message `3` has `weight` of `0.5`, required: true, false, 0 or 1",
        ),
        (
            json!({"train": "yes"}),
            "message `3` has `train` of `\"yes\"`, required: true, false, 0 or 1",
        ),
        (
            json!({"train": true, "loss": 0}),
            "message `3` has `train` and `loss` that differ, required: one of them",
        ),
    ] {
        for train_on in ["all", "last", "marked"] {
            let rows = [good.clone(), two_turns(&none, &flags)];
            let said = place.refused(&rows, &none, &json!({"train_on": train_on}));
            assert_eq!(said, format!("sample `1` of `ROWS` (`ROWS:2`): {message} / "));
        }
    }
    let mut row = good;
    row["messages"][2]["loss"] = true.into();
    place.prepare(std::slice::from_ref(&row), &none, &none).unwrap();
    assert_eq!(
        place.refused(&[row], &none, &json!({"train_on": "marked"})),
        "sample `0` of `ROWS` (`ROWS:1`): message `2` of role `user` is marked, required: marks on what the assistant wrote / "
    );
}

#[test]
fn roles_that_nobody_knows_are_refused_or_dropped() {
    let place = Place::new();
    let none = json!({});
    let row = json!({"messages": [
        {"role": "user", "content": "hi"}, {"role": "critic", "content": "x"}, {"role": "judge", "content": "x"},
        {"role": "critic", "content": "x"}, {"role": "assistant", "content": "ho"},
    ]});
    assert_eq!(
        place.refused(std::slice::from_ref(&row), &none, &none),
        "sample `0` of `ROWS` (`ROWS:1`): `messages[1].role` is `critic`, required: a role such as `system`, `user`, `assistant` or `tool` / \
         set role_mapping of the source, such as `{user: messages.role.customer, assistant: messages.role.agent}`, or unmapped_roles to drop"
    );
    let mapping = json!({"user": "messages.role.user", "assistant": "messages.role.assistant"});
    for source in [json!({"unmapped_roles": "drop"}), json!({"role_mapping": mapping})] {
        let data = place.prepare(std::slice::from_ref(&row), &source, &none).unwrap();
        place.compare(&data, &[HI_HO]);
        assert_eq!(left_out(&data), [("role `critic`", 2), ("role `judge`", 1)]);
    }
    // A tool's message is more than talk.
    let row = json!({"turns": [
        {"from": "human", "value": "hi"}, {"from": "function_call", "value": "{}"}, {"from": "gpt", "value": "ho"},
    ]});
    let mapping = json!({"user": "turns.from.human", "assistant": "turns.from.gpt"});
    assert_eq!(
        place.refused(std::slice::from_ref(&row), &json!({"role_mapping": mapping}), &none),
        "sample `0` of `ROWS` (`ROWS:1`): role_mapping leaves out the message of role `function_call`, which calls a tool or is its result / \
         add `function_call: turns.from.function_call` to role_mapping, or remove role_mapping to take messages as they are, or set unmapped_roles to drop"
    );
    let drop = json!({"role_mapping": mapping, "unmapped_roles": "drop"});
    let data = place.prepare(&[row], &drop, &none).unwrap();
    place.compare(&data, &[HI_HO]);
    assert_eq!(left_out(&data), [("role `function_call`", 1)]);
}

#[test]
#[expect(clippy::too_many_lines, reason = "a row for each message")]
fn messages_without_sense_are_refused_by_their_place() {
    let place = Place::new();
    let none = json!({});
    let list = |item: Value| json!({"messages": [{"role": "user", "content": "hi"}, item]});
    let says = |key: &str, value: Value| {
        let mut message = json!({"role": "assistant", "content": "ho"});
        message[key] = value;
        list(message)
    };
    let text = "set content_key of the source to the field that holds the text";
    let media = "leave out rows with images, audio or video: models are trained on text";
    let parts = "write thoughts as `reasoning_content`, calls as `tool_calls`, and results as messages of role `tool`";
    let calls = "required: a list of calls, or one as JSON text";
    let call = "is a call that is not JSON, required: an object with `name` and `arguments`";
    for (bad, message, hint) in [
        (
            json!({"messages": 3}),
            "`messages` is a number, required: a list, or one as JSON text".to_owned(),
            "",
        ),
        (
            json!({"messages": "hi"}),
            "`messages` is text that is not JSON, required: a list, or one as JSON text".to_owned(),
            "",
        ),
        (
            json!({"messages": "{}"}),
            "`messages` is an object as JSON text, required: a list, or one as JSON text"
                .to_owned(),
            "",
        ),
        (
            list(json!("ho")),
            "`messages[1]` is text, required: an object with `role` and `content`".to_owned(),
            "",
        ),
        (
            list(json!({"content": "ho"})),
            "`messages[1].role` is missing, required: text".to_owned(),
            "",
        ),
        (
            list(json!({"from": 3, "value": "ho"})),
            "`messages[1].from` is a number, required: text".to_owned(),
            "",
        ),
        (
            says("content", json!({"text": "ho"})),
            "`messages[1].content` is an object, required: text".to_owned(),
            text,
        ),
        (
            says("content", json!([{"type": "image", "url": "x"}])),
            "`messages[1].content[0]` is a part of type `image`, required: text".to_owned(),
            media,
        ),
        (
            says("content", json!(["ho", {"type": "tool_use", "name": "depth"}])),
            "`messages[1].content[1]` is a part of type `tool_use`, required: text".to_owned(),
            parts,
        ),
        (
            says("tool_calls", json!({"name": "f"})),
            format!("`messages[1].tool_calls` is an object, {calls}"),
            "",
        ),
        (
            says("tool_calls", json!([3])),
            format!("`messages[1].tool_calls` is a list with a number, {calls}"),
            "",
        ),
        (
            says("tool_calls", json!("f(x)")),
            format!("`messages[1].tool_calls` is text that is not JSON, {calls}"),
            "",
        ),
        (says("function_call", json!("f(x)")), format!("`messages[1].function_call` {call}"), ""),
        (
            list(json!({"from": "function_call", "value": "f(x)"})),
            format!("`messages[1]` {call}"),
            "",
        ),
        (
            json!({"messages": hi_ho(), "tools": "hammer"}),
            "`tools` is text that is not JSON, required: JSON".to_owned(),
            "",
        ),
        (
            json!({"messages": hi_ho(), "tools": {"a": 1}}),
            "`tools` is an object, required: a list of tools".to_owned(),
            "",
        ),
        (
            json!({"messages": hi_ho(), "tools": [{}, "f"]}),
            "`tools[1]` is text, required: an object".to_owned(),
            "",
        ),
        (
            json!({"messages": hi_ho(), "chat_template_kwargs": ["mood"]}),
            "`chat_template_kwargs` is a list, required: an object".to_owned(),
            "",
        ),
    ] {
        let said = place.refused(&[json!({"messages": hi_ho()}), bad], &none, &none);
        assert_eq!(said, format!("sample `1` of `ROWS` (`ROWS:2`): {message} / {hint}"));
    }
}

#[test]
fn rows_that_say_nothing_are_dropped_and_counted() {
    let place = Place::new();
    let none = json!({});
    let reply = |content: Value| json!({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": content}]});
    let rows = [
        reply(json!("ho")),
        json!({"messages": null}),
        json!({"id": 3}),
        json!({"messages": []}),
        reply(json!("")),
        reply(json!(" \n")),
        reply(json!([])),
        reply(json!(null)),
        json!({"messages": [{"role": "user", "content": null}, {"role": "assistant", "content": "ho"}]}),
        json!({"messages": [{"role": "user", "content": "hi"}]}),
        json!({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho", "weight": 0}]}),
    ];
    let data = place.prepare(&rows, &none, &none).unwrap();
    place.compare(&data, &[HI_HO]);
    let expected = [
        ("`messages` is null", 2),
        ("every reply is empty", 3),
        ("no label", 2),
        ("no messages", 1),
        ("no text of role `assistant`", 1),
        ("no text of role `user`", 1),
    ];
    assert_eq!(dropped(&data), expected);
    assert_eq!(
        place.refused(&rows[1..4], &none, &none),
        "no row of source `ROWS` can be trained on: `2` `messages` is null, `1` no messages / \
         `sterna data RECIPE --show 3` shows rows as the model sees them"
    );
    // The same lists through a role mapping.
    let mapping = json!({"role_mapping": {"user": "messages.role.user", "assistant": "messages.role.assistant"}});
    let data = place.prepare(&rows, &mapping, &none).unwrap();
    let expected = [("`messages` is empty", 3), ("every reply is empty", 3), ("no label", 3)];
    assert_eq!(dropped(&data), expected);
    let texts = place.texts(&data);
    assert_eq!((texts.len(), &texts[1].1[..]), (2, "ho<|im_end|>"));
    assert_eq!(left_out(&data), [("without text", 1)], "of the row that is kept");
}

#[test]
fn an_earlier_name_of_calls_is_a_call() {
    let place = Place::new();
    for call in [
        json!({"name": "depth", "arguments": "{\"lake\": \"Como\"}"}),
        json!("{\"name\": \"depth\", \"arguments\": \"{\\\"lake\\\": \\\"Como\\\"}\"}"),
    ] {
        let row = json!({"messages": [
            {"role": "user", "content": "How deep?"},
            {"role": "assistant", "content": null, "function_call": call},
            {"role": "function", "name": "depth", "content": "410"},
            {"role": "assistant", "content": "410 m."},
        ]});
        let text = "<|im_start|>user\nHow deep?<|im_end|>\n<|im_start|>assistant\n\
            <call>{\"name\": \"depth\", \"arguments\": \"{\\\"lake\\\": \\\"Como\\\"}\"}</call><|im_end|>\n\
            <|im_start|>function\n410<|im_end|>\n<|im_start|>assistant\n410 m.<|im_end|>\n";
        let labelled = "<call>{\"name\": \"depth\", \"arguments\": \"{\\\"lake\\\": \\\"Como\\\"}\"}</call><|im_end|>|410 m.<|im_end|>";
        place.check(&[row], &json!({}), &json!({}), &[(text, labelled)]);
    }
}

/// The field that holds the role or the text of a message wins over others that are called so.
#[test]
fn other_fields_do_not_replace_role_and_content() {
    let place = Place::new();
    let none = json!({});
    for (text, null) in [("text", "content"), ("value", "text")] {
        let row = json!({"messages": [{"role": "user", text: "hi", null: null}, {"role": "assistant", text: "ho", null: null}]});
        place.check(&[row], &none, &none, &[HI_HO]);
    }
    let row = json!({"messages": [
        {"speaker": "a", "role": "guest", "content": "x", "said": "hi"},
        {"said": "ho", "content": "x", "role": "host", "speaker": "b"},
    ]});
    let source = json!({
        "role_mapping": {"user": "messages.speaker.a", "assistant": "messages.speaker.b"}, "content_key": "said",
    });
    place.check(&[row], &source, &none, &[HI_HO]);
    let row =
        json!({"messages": [{"role": "user", "said": "hi"}, {"role": "assistant", "said": "ho"}]});
    place.check(&[row], &json!({"content_key": "said"}), &none, &[HI_HO]);
}

#[test]
fn roles_in_separate_lists_lose_nothing_in_silence() {
    let place = Place::new();
    let none = json!({});
    let source = json!({"role_mapping": {"user": "asked.by.user", "assistant": "said.by.bot"}});
    let row = |asked: &[Option<&str>], said: &[Option<&str>]| {
        let items = |by: &str, texts: &[Option<&str>]| -> Vec<Value> {
            texts.iter().map(|text| json!({"by": by, "text": text})).collect()
        };
        json!({"asked": items("user", asked), "said": items("bot", said)})
    };
    let mut with_others = row(&[Some("hi")], &[Some("ho")]);
    with_others["said"].as_array_mut().unwrap().push(json!({"by": "critic", "text": "x"}));
    let rows = [
        with_others,
        // Without its nulls this row would answer the second question with the first reply.
        row(&[None, Some("he")], &[Some("ho"), None]),
        row(&[], &[]),
    ];
    let data = place.prepare(&rows, &source, &none).unwrap();
    place.compare(&data, &[HI_HO]);
    assert_eq!(dropped(&data), [("no text of role `user`", 2)]);
    assert_eq!(left_out(&data), [("of no role in `said`", 1)]);
}

#[test]
fn the_cache_knows_every_key_about_rows() {
    let place = Place::new();
    let rows = [
        json!({"messages": hi_ho(), "tools": null, "functions": null, "text": "Hello world", "turns": hi_ho()}),
    ];
    let from_cache = |source: &Value, data: &Value| {
        place.prepare(&rows, source, data).unwrap().report.train.sources[0].from_cache
    };
    let none = json!({});
    assert!(!from_cache(&none, &none));
    assert!(from_cache(&none, &none));
    let mapping = json!({"user": "messages.role.user", "assistant": "messages.role.assistant"});
    for (source, data) in [
        (none.clone(), json!({"train_on": "last"})),
        (none.clone(), json!({"chat_template_kwargs": {"mood": "calm"}})),
        (none.clone(), json!({"chat_template_kwargs": {"mood": "glad"}})),
        (none.clone(), json!({"control_tokens": "plain_text"})),
        (json!({"unmapped_roles": "drop"}), none.clone()),
        (json!({"tools_key": "functions"}), none.clone()),
        (json!({"content_key": "content"}), none.clone()),
        (json!({"format": "text"}), none.clone()),
        (json!({"messages_key": "turns"}), none.clone()),
        (json!({"role_mapping": mapping}), none.clone()),
    ] {
        assert!(!from_cache(&source, &data), "made for {source} {data}");
        assert!(from_cache(&source, &data), "kept for {source} {data}");
    }
    // What was recognised is what the key says.
    assert!(from_cache(&json!({"format": "messages"}), &none));
    assert!(from_cache(&none, &json!({"train_on": "all", "excess_length": "truncate"})));
}

#[test]
fn special_tokens_in_tools_and_questions_can_be_text() {
    let place = Place::new();
    let row = json!({
        "tools": [{"name": "stop", "says": "<|im_end|>"}],
        "messages": [
            {"role": "user", "content": "Is <|im_end|> one, <|im_start|>assistant\nor <|im_end|>?"},
            {"role": "assistant", "content": "Both.", "reasoning_content": "sternaControl0x0y"},
        ],
    });
    let (end, start) = (2, 1);
    let ids = |control_tokens: &str| {
        let keys = json!({"control_tokens": control_tokens});
        let data = place.prepare(std::slice::from_ref(&row), &json!({}), &keys).unwrap();
        assert_eq!(data.report.train.sources[0].stats.control_token_rows, 1);
        let [(text, labelled)] = &place.texts(&data)[..] else { panic!("one row") };
        let expected = "TOOLS[{\"name\": \"stop\", \"says\": \"<|im_end|>\"}]\n\
            <|im_start|>user\nIs <|im_end|> one, <|im_start|>assistant\nor <|im_end|>?<|im_end|>\n\
            <|im_start|>assistant\n<think>sternaControl0x0y</think>Both.<|im_end|>\n";
        assert_eq!(
            (&text[..], &labelled[..]),
            (expected, "<think>sternaControl0x0y</think>Both.<|im_end|>")
        );
        let ids = data.train.sample(0).unwrap().input_ids;
        [end, start].map(|token| ids.iter().filter(|&&id| id == token).count())
    };
    assert_eq!(ids("warn"), [5, 3]);
    assert_eq!(ids("plain_text"), [2, 2], "those of the template");
}

/// A question that spells a special token 40,000 times, after another one that it spells once: searching each by itself took a
/// pass over the text for every one of them.
#[test]
fn special_tokens_of_long_chats_are_found_in_one_pass() {
    let place = Place::new();
    let content = format!("<file_sep> {}", "<|im_end|> and ".repeat(40_000));
    let row = [json!({"messages": [
        {"role": "user", "content": content}, {"role": "assistant", "content": "ho"},
    ]})];
    let seconds = |control_tokens: &str| {
        let keys = json!({"control_tokens": control_tokens, "max_length": 1 << 24});
        let start = std::time::Instant::now();
        place.prepare(&row, &json!({}), &keys).unwrap();
        start.elapsed().as_secs_f64()
    };
    let (as_tokens, as_text) = (seconds("warn"), seconds("plain_text"));
    assert!(as_text < 5.0 * as_tokens + 2.0, "{as_text} s instead of {as_tokens} s");
}

/// Recipes and rows that once went wrong in the field.
mod field {
    use super::*;

    const PLAIN: &str = "{% if tools %}{{ 'TOOLS' + (tools | tojson) }}{% endif %}\
        {% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}";

    fn mapping(roles: &[&str]) -> Value {
        let roles =
            roles.iter().map(|role| ((*role).to_owned(), format!("messages.role.{role}").into()));
        json!({"role_mapping": roles.collect::<serde_json::Map<_, _>>()})
    }

    #[test]
    fn calls_and_thoughts_are_printed_through_a_role_mapping() {
        let place = Place::new();
        for content in [json!(""), json!(null)] {
            let row = json!({"messages": [
                {"role": "user", "content": "How deep is it?"},
                {"role": "assistant", "content": content, "tool_calls": [
                    {"type": "function", "id": "c1", "function": {"name": "depth", "arguments": {"lake": "Como"}}},
                ]},
                {"role": "tool", "content": "410"}, {"role": "assistant", "content": "410 m."},
            ]});
            let call =
                "<call>{\"name\": \"depth\", \"arguments\": {\"lake\": \"Como\"}}</call><|im_end|>";
            let text = format!(
                "<|im_start|>user\nHow deep is it?<|im_end|>\n<|im_start|>assistant\n{call}\n\
                 <|im_start|>tool\n410<|im_end|>\n<|im_start|>assistant\n410 m.<|im_end|>\n"
            );
            let labelled = format!("{call}|410 m.<|im_end|>");
            let source = mapping(&["user", "assistant", "tool"]);
            place.check(&[row], &source, &json!({}), &[(&text, &labelled)]);
        }
        let row = json!({"messages": [
            {"role": "user", "content": "7*6?"}, {"role": "assistant", "content": "42.", "reasoning_content": "Seven sixes."},
        ]});
        let text = "<|im_start|>user\n7*6?<|im_end|>\n<|im_start|>assistant\n<think>Seven sixes.</think>42.<|im_end|>\n";
        let expected = [(text, "<think>Seven sixes.</think>42.<|im_end|>")];
        place.check(&[row], &mapping(&["user", "assistant"]), &json!({}), &expected);
    }

    #[test]
    fn tools_of_a_row_are_printed_through_a_role_mapping() {
        let place = Place::with_template(PLAIN);
        let row = json!({"messages": hi_ho(), "tools": [{"type": "function", "function": {"name": "depth"}}]});
        let text = format!(
            "TOOLS[{{\"type\": \"function\", \"function\": {{\"name\": \"depth\"}}}}]{}",
            HI_HO.0
        );
        place.check(
            &[row],
            &mapping(&["user", "assistant"]),
            &json!({}),
            &[(&text, "ho<|im_end|>")],
        );
    }

    #[test]
    fn columns_without_text_drop_their_rows() {
        let place = Place::with_template(PLAIN);
        let source = json!({"role_mapping": {"user": "prompt", "assistant": "completion"}});
        let rows = [
            json!({"prompt": "p1", "completion": ""}),
            json!({"prompt": "", "completion": "c2"}),
            json!({"prompt": null, "completion": "c3"}),
            json!({"prompt": "p4", "completion": null}),
            json!({"prompt": "hi", "completion": "ho"}),
        ];
        let data = place.prepare(&rows, &source, &json!({})).unwrap();
        place.compare(&data, &[HI_HO]);
        let expected = [("no text of role `assistant`", 2), ("no text of role `user`", 2)];
        assert_eq!(dropped(&data), expected);
        let said = place.refused(&rows[..4], &source, &json!({}));
        assert!(
            said.starts_with(
                "no row of source `ROWS` can be trained on: `2` no text of role `assistant`"
            ),
            "{said}"
        );
    }

    #[test]
    fn a_chat_without_tokens_is_dropped() {
        let place = Place::with_template(
            "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}{% endif %}{% endfor %}",
        );
        let source = mapping(&["user", "assistant"]);
        let rows = [
            json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": ""}]}),
            json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "one two three"}]}),
            json!({"messages": [{"role": "user", "content": "q"}]}),
        ];
        let data = place.prepare(&rows, &source, &json!({})).unwrap();
        place.compare(&data, &[("one two three", " two three")]);
        assert_eq!(dropped(&data), [("every reply is empty", 1), ("no token", 1)]);
    }

    #[test]
    fn a_sample_of_nothing_says_so() {
        let place = Place::with_template(PLAIN);
        let rows = [json!({"messages": hi_ho()})];
        for sample in [json!({"sample_count": 0}), json!({"sample_ratio": 0.001})] {
            let error = place.prepare(&rows, &sample, &json!({})).unwrap_err();
            assert!(matches!(error, Error::NothingSampled { rows: 1, .. }), "{error}");
            assert_eq!(
                place.refused(&rows, &sample, &json!({})),
                "source `ROWS`: sample_count, sample_ratio, epochs or weight chooses none of `1` rows / raise sample_count, sample_ratio, epochs, weight or max_length, or remove the source"
            );
        }
    }

    #[test]
    fn numbers_are_what_python_prints() {
        let place = Place::with_template(PLAIN);
        let path = place.folder.path().join("rows.jsonl");
        let line = |number: &str| {
            format!(
                "{{\"messages\": [{{\"role\": \"user\", \"content\": \"n\"}}, {{\"role\": \"assistant\", \"content\": {number}}}]}}\n"
            )
        };
        let numbers = [
            ("1e-5", "1e-05"),
            ("12345678901234567.0", "1.2345678901234568e+16"),
            ("18446744073709551615", "18446744073709551615"),
            ("-9223372036854775808", "-9223372036854775808"),
            ("0.1", "0.1"),
            ("100000.0", "100000.0"),
            ("1e16", "1e+16"),
            ("-0.0", "-0.0"),
            ("1.5e300", ""),
        ];
        let written = &numbers[..numbers.len() - 1];
        fs::write(&path, written.iter().map(|(number, _)| line(number)).collect::<String>())
            .unwrap();
        let data = place.prepare_file(&path, &json!({}), &json!({})).unwrap();
        let printed: Vec<String> =
            place.texts(&data).into_iter().map(|(_, labelled)| labelled).collect();
        let expected: Vec<String> =
            written.iter().map(|(_, text)| format!("{text}<|im_end|>")).collect();
        assert_eq!(printed, expected);
        // These have lost digits, or may have.
        for number in ["18446744073709551616", "-1e20", "1.5e300"] {
            fs::write(&path, line(number)).unwrap();
            let error = place.prepare_file(&path, &json!({}), &json!({})).unwrap_err();
            assert!(
                error.to_string().ends_with(
                    "`messages[1].content` is a number of more than 64 bits, required: text"
                ),
                "{error}"
            );
            assert_eq!(error.hint().unwrap(), "write it as text");
        }
    }

    #[test]
    fn parts_of_text_are_text() {
        let parts = json!([{"type": "text", "text": "h"}, "i"]);
        let row = json!({"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": [{"type": "text", "text": "ho"}]}]});
        for source in [json!({}), mapping(&["user", "assistant"])] {
            Place::with_template(PLAIN).check(
                std::slice::from_ref(&row),
                &source,
                &json!({}),
                &[HI_HO],
            );
        }
        // A template that reads parts gets them.
        let reads = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}\
            {% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}\
            {{ '<|im_end|>\n' }}{% endfor %}";
        Place::with_template(reads).check(&[row], &json!({}), &json!({}), &[HI_HO]);
    }
}

mod preference {
    use super::*;

    /// Why a row is an error, or why it compares nothing, comes after a colon.
    fn parse(row: &Value) -> Result<Preference, String> {
        let id = || RowId {
            source_name: "pairs".to_owned(),
            row: 3,
            path: "pairs.jsonl".into(),
            line: Some(4),
        };
        let parsed = Preference::parse(row.as_object().unwrap(), &id).map_err(|error| {
            let said = error.to_string();
            said.strip_prefix("sample `3` of `pairs` (`pairs.jsonl:4`): ").unwrap().to_owned()
        });
        parsed?.map_err(|why| format!("dropped: {why}"))
    }

    fn text(prompt: &str, chosen: &str, rejected: &str) -> Preference {
        let own = str::to_owned;
        Preference::Text { prompt: own(prompt), chosen: own(chosen), rejected: own(rejected) }
    }

    fn messages(pairs: &[(&str, &str)]) -> Vec<Message> {
        pairs.iter().map(|(role, content)| Message::new(*role, *content)).collect()
    }

    type Pairs<'a> = &'a [(&'a str, &'a str)];

    fn list(pairs: Pairs<'_>) -> Value {
        pairs.iter().map(|(role, content)| json!({"role": role, "content": content})).collect()
    }

    fn chat(prompt: Pairs<'_>, chosen: Pairs<'_>, rejected: Pairs<'_>) -> Preference {
        let [prompt, chosen, rejected] = [prompt, chosen, rejected].map(messages);
        Preference::Chat { prompt, chosen, rejected }
    }

    /// The prompt of each is what TRL's `extract_prompt` takes: up to the first difference, and not the space before it.
    #[test]
    fn an_implicit_prompt_of_texts_ends_before_the_space() {
        for (chosen, rejected, expected) in [
            ("The sky is blue.", "The sky is green.", text("The sky is", " blue.", " green.")),
            ("The sky isn't", "The sky is", text("The sky is", "n't", "")),
            ("q\nblue", "q\ngreen", text("q\n", "blue", "green")),
            ("a  b", "a  c", text("a ", " b", " c")),
            ("\u{e9}\u{e8}", "\u{e9}\u{ea}", text("\u{e9}", "\u{e8}", "\u{ea}")),
        ] {
            let row = json!({"chosen": chosen, "rejected": rejected});
            if matches!(&expected, Preference::Text { rejected, .. } if rejected.is_empty()) {
                assert_eq!(
                    parse(&row),
                    Err("dropped: `rejected` has no reply of its own".to_owned())
                );
            } else {
                assert_eq!(parse(&row), Ok(expected));
            }
        }
        let row = json!({"prompt": "The ", "chosen": "sky", "rejected": "sea"});
        assert_eq!(parse(&row), Ok(text("The ", "sky", "sea")));
        let row = json!({"prompt": "", "chosen": "sky", "rejected": "sea"});
        assert_eq!(parse(&row), Ok(text("", "sky", "sea")));
    }

    #[test]
    fn an_implicit_prompt_of_chats_is_the_messages_of_both() {
        let (ask, blue, green) =
            (("user", "Colour?"), ("assistant", "Blue."), ("assistant", "Green."));
        let expected = chat(&[ask], &[blue], &[green]);
        let both = |prompt: Option<Value>, chosen: Pairs<'_>, rejected: Pairs<'_>| {
            let mut row = json!({"chosen": list(chosen), "rejected": list(rejected)});
            if let Some(prompt) = prompt {
                row["prompt"] = prompt;
            }
            parse(&row)
        };
        assert_eq!(both(None, &[ask, blue], &[ask, green]), Ok(expected.clone()));
        // UltraFeedback: the prompt once more, as text. A system message may stand before it.
        let system = ("system", "Be brief.");
        assert_eq!(both(Some("Colour?".into()), &[ask, blue], &[ask, green]), Ok(expected.clone()));
        assert_eq!(
            both(Some("Colour?".into()), &[system, ask, blue], &[system, ask, green]),
            Ok(chat(&[system, ask], &[blue], &[green]))
        );
        assert_eq!(both(Some("Colour?".into()), &[blue], &[green]), Ok(expected.clone()));
        // Explicit, alone or repeated.
        assert_eq!(both(Some(list(&[ask])), &[blue], &[green]), Ok(expected.clone()));
        assert_eq!(both(Some(list(&[ask])), &[ask, blue], &[ask, green]), Ok(expected));
        // What both replies begin with is theirs if the prompt is explicit.
        let more = ("user", "And?");
        assert_eq!(
            both(Some(list(&[ask])), &[blue, more, green], &[blue, more, blue]),
            Ok(chat(&[ask], &[blue, more, green], &[blue, more, blue]))
        );
        // ShareGPT.
        let row = json!({
            "chosen": [{"from": "human", "value": "Colour?"}, {"from": "gpt", "value": "Blue."}],
            "rejected": [{"from": "human", "value": "Colour?"}, {"from": "gpt", "value": "Green."}],
        });
        assert_eq!(parse(&row), Ok(chat(&[ask], &[blue], &[green])));
    }

    #[test]
    fn pairs_without_sense_are_refused() {
        let (ask, blue, green) =
            (("user", "Colour?"), ("assistant", "Blue."), ("assistant", "Green."));
        let lists = |prompt: Value, chosen: Pairs<'_>, rejected: Pairs<'_>| json!({"prompt": prompt, "chosen": list(chosen), "rejected": list(rejected)});
        for (row, message) in [
            (json!({"chosen": "a", "rejected": "a"}), "dropped: `chosen` and `rejected` are equal"),
            (
                json!({"chosen": "a b", "rejected": "a "}),
                "dropped: `rejected` has no reply of its own",
            ),
            (
                json!({"prompt": "q", "chosen": "", "rejected": "a"}),
                "dropped: `chosen` has no reply of its own",
            ),
            (
                json!({"chosen": "a", "rejected": "b"}),
                "`chosen` and `rejected` begin with different text, required: one prompt for both",
            ),
            (
                json!({"chosen": "a", "rejected": null}),
                "`chosen` is text and `rejected` null, required: text and text, or two lists of messages",
            ),
            (
                json!({}),
                "`chosen` is null and `rejected` null, required: text and text, or two lists of messages",
            ),
            (
                json!({"prompt": list(&[ask]), "chosen": "a", "rejected": "b"}),
                "`prompt` is a list, required: text, or a list of messages if the replies are lists",
            ),
            (
                lists(json!(3), &[blue], &[green]),
                "`prompt` is a number, required: text, or a list of messages if the replies are lists",
            ),
            (
                lists(json!(null), &[blue], &[green]),
                "`chosen` and `rejected` begin with different messages, required: one prompt for both",
            ),
            (
                lists(json!(null), &[ask], &[ask, green]),
                "dropped: `chosen` has no reply of its own",
            ),
            (
                lists(json!("q"), &[ask, blue], &[ask, green]),
                "`prompt` is not in what `chosen` and `rejected` begin with, required: the same question",
            ),
            (
                lists(json!([]), &[blue], &[green]),
                "`chosen` and `rejected` begin with different messages, required: one prompt for both",
            ),
            (
                lists(json!(null), &[ask, ("critic", "x")], &[ask, green]),
                "`chosen[1].role` is `critic`, required: a role such as `system`, `user`, `assistant` or `tool`",
            ),
            (
                json!({"chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": null}], "rejected": list(&[ask, green])}),
                "`chosen[1]` has no content, required: text",
            ),
        ] {
            assert_eq!(parse(&row), Err(message.to_owned()), "{row}");
        }
    }
}
