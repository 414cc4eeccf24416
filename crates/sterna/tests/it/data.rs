//! `sterna data`.

use insta::assert_snapshot;
use serde_json::{Value, json};

use crate::workspace::{RECIPE, Workspace};

#[test]
fn each_rank_gets_its_batches() {
    let workspace = Workspace::new();
    assert_snapshot!(workspace.show(&["data", "recipe.yaml", "--world-size", "2", "--steps", "3", "--out", "batches"]), @r"
    exit status: 0
    ----- stdout -----

    ----- stderr -----
    wrote 3 micro-batches for each of 2 ranks to batches
    ");
    let ranks = [0, 1].map(|rank| workspace.rows(&format!("batches/rank{rank}.jsonl")));
    for rows in &ranks {
        assert_eq!(rows.len(), 3);
        let keys: Vec<&String> = rows[0].as_object().unwrap().keys().collect();
        assert_eq!(keys, ["input_ids", "labels", "position_ids", "packed_sample_seqlens"]);
        assert_eq!(rows[0]["input_ids"][0].as_array().unwrap().len(), 256);
    }
    assert_ne!(ranks[0], ranks[1]);
}

#[test]
fn ranks_that_share_a_sequence_get_its_parts() {
    let workspace = Workspace::new();
    let whole = workspace.run(&["data", "recipe.yaml", "--steps", "1", "--out", "whole"]);
    assert!(whole.status.success());
    let split = [
        "data",
        "recipe.yaml",
        "--set",
        "sequence_parallel_size=2",
        "--steps",
        "1",
        "--out",
        "split",
    ];
    assert!(workspace.run(&split).status.success());
    let parts = [0, 1].map(|rank| workspace.rows(&format!("split/rank{rank}.jsonl")).remove(0));
    assert!(parts[0].get("labels").is_none());
    let ids = |row: &Value| row["input_ids"][0].as_array().unwrap().clone();
    assert_eq!(parts.each_ref().map(|part| ids(part).len()), [128, 128]);
    // The sampler hands out other samples for two ranks than for one; the first pack of rank 0 is the same.
    assert_eq!(
        [ids(&parts[0]), ids(&parts[1])].concat(),
        ids(&workspace.rows("whole/rank0.jsonl")[0])
    );
}

#[test]
fn missing_data_is_named() {
    let workspace = Workspace::new();
    workspace.write("bad.yaml", &RECIPE.replace("name_or_path: chats", "name_or_path: ./chatz"));
    assert_snapshot!(workspace.show(&["data", "bad.yaml", "--steps", "1", "--out", "batches"]), @r"
    exit status: 2
    ----- stdout -----

    ----- stderr -----
    error: `data.sources[0].name_or_path` is `./chatz`, which does not exist, required: a folder or file that is there, or a hub name such as `owner/name`
     --> bad.yaml:9:21
      |
    9 |       name_or_path: ./chatz
      |                     ^^^^^^^
      = hint: a relative path starts at the folder where sterna is called

    1 error in `bad.yaml`
    ");
    assert!(!workspace.path("batches").exists());
}

#[test]
fn no_data_left_is_said_with_the_number_of_samples_dropped() {
    let workspace = Workspace::new();
    let args =
        ["data", "recipe.yaml", "--set", "data.max_length=8", "--steps", "1", "--out", "batches"];
    assert_snapshot!(workspace.show(&args), @r"
    exit status: 2
    ----- stdout -----

    ----- stderr -----
    error: no data left: all `40` samples are longer than max_length `8` (shortest `46`, longest `49` tokens)

    hint: raise data.max_length
    ");
}

/// A workspace whose only chats are `chats`, each a list of roles and texts.
fn with_chats(chats: &[&[(&str, &str)]]) -> Workspace {
    let workspace = Workspace::new();
    let rows: Vec<String> = chats
        .iter()
        .map(|chat| {
            let messages: Vec<Value> =
                chat.iter().map(|(role, text)| json!({"role": role, "content": text})).collect();
            json!({"messages": messages}).to_string()
        })
        .collect();
    workspace.write("chats/train.jsonl", &rows.join("\n"));
    workspace
}

#[test]
fn packs_are_shown_with_what_is_trained_and_what_was_counted() {
    let workspace = with_chats(&[
        &[("user", "Two?"), ("assistant", "2")],
        &[
            ("user", "\u{645}\u{631}\u{62d}\u{628}\u{627}"),
            ("assistant", "\u{5e9}\u{5dc}\u{5d5}\u{5dd} <|im_end|>"),
        ],
        &[("user", "Three?"), ("critic", "?")],
        &[("user", "<|im_end|>?"), ("assistant", "Long.\n\nLonger.")],
    ]);
    let args = ["data", "recipe.yaml", "--show", "1", "--set", "data.div_length=64"];
    assert_snapshot!(workspace.show(&args), @r"
    exit status: 0
    ----- stdout -----
    ⟦trained on⟧, not trained on, ⟨special token⟩

    ══ pack 1 of 1: 3 documents, 104 tokens, 28 labels (26.9%), padded by 24 tokens
    ── document 1: 26 tokens, 2 labels (7.7%)
    ⟨<|im_start|>⟩user
    Two?⟨<|im_end|>⟩
    ⟨<|im_start|>⟩assistant
    ⟦2⟨<|im_end|>⟩⟧
    ── document 2: 41 tokens, 11 labels (26.8%)
    ⟨<|im_start|>⟩user
    مرحبا⟨<|im_end|>⟩
    ⟨<|im_start|>⟩assistant
    ⟦שלום ⟨<|im_end|>⟩⟨<|im_end|>⟩⟧
    ── document 3: 37 tokens, 15 labels (40.5%)
    ⟨<|im_start|>⟩user
    ⟨<|im_end|>⟩?⟨<|im_end|>⟩
    ⟨<|im_start|>⟩assistant
    ⟦Long.

    Longer.⟨<|im_end|>⟩⟧

    ══ source chats, split train
    read as                         chats by role_mapping
    rows read                       4
    rows dropped                    1 (1 no label)
    messages left out               0
    samples                         3
    samples without a label         0
    tokens                          104
    labels                          28 (26.9%)
    replies                         3
    replies without an end of turn  0
    rows that spell special tokens  1

    ══ training data
    max_length                 256
    longest sample             41 tokens
    samples dropped as longer  0
    samples kept               3
    tokens kept                104
    packs                      1, 40.6% full
    one epoch                  1 pack
    padding in an epoch        24 (18.8%)
    ----- stderr -----
     WARN source `chats`: of `4` rows, dropped: `1` no label
     WARN source `chats`: `1` rows spell special tokens in texts that the assistant did not write; they become these tokens, as in transformers (data.control_tokens: plain_text makes them text)
    ");
}

#[test]
fn samples_are_shown_without_documents_and_long_ones_in_part() {
    let workspace = with_chats(&[&[("user", "Count."), ("assistant", &"1 2 3 ".repeat(20))]]);
    let args = [
        "data",
        "recipe.yaml",
        "--show",
        "3",
        "--show-tokens",
        "60",
        "--set",
        "data.pack_samples=false",
    ];
    assert_snapshot!(workspace.show(&args), @r"
    exit status: 0
    ----- stdout -----
    ⟦trained on⟧, not trained on, ⟨special token⟩

    ══ sample 1 of 1: 147 tokens, 121 labels (82.3%), padded by 109 tokens
    ⟨<|im_start|>⟩user
    Count.⟨<|im_end|>⟩
    ⟨<|im_start|>⟩assistant
    ⟦1 2 3⟧
    [87 tokens with 87 labels left out]
    ⟦2 3 1 2 3 1 2 3 1 2 3 1 2 3 ⟨<|im_end|>⟩⟧

    ══ source chats, split train
    read as                         chats by role_mapping
    rows read                       1
    rows dropped                    0
    messages left out               0
    samples                         1
    samples without a label         0
    tokens                          147
    labels                          121 (82.3%)
    replies                         1
    replies without an end of turn  0
    rows that spell special tokens  0

    ══ training data
    max_length                 256
    longest sample             147 tokens
    samples dropped as longer  0
    samples kept               1
    tokens kept                147
    one epoch                  1 sample
    padding in an epoch        109 (42.6%)
    ----- stderr -----
    ");
}

#[test]
fn sequences_are_shown_in_the_order_of_the_batches() {
    let workspace = Workspace::new();
    let args = ["data", "recipe.yaml", "--world-size", "2", "--set", "data.pack_samples=false"];
    let shown = workspace.run(&[&args[..], &["--show", "6"]].concat());
    let shown = String::from_utf8(shown.stdout).unwrap();
    let questions: Vec<&str> = shown.lines().filter(|line| line.starts_with("What is")).collect();
    let written = workspace.run(&[&args[..], &["--steps", "3", "--out", "batches"]].concat());
    assert!(written.status.success());
    let ranks = [0, 1].map(|rank| workspace.rows(&format!("batches/rank{rank}.jsonl")));
    assert_eq!(questions.len(), 6);
    for (at, question) in questions.into_iter().enumerate() {
        let text = question.replace("\u{27e8}<|im_end|>\u{27e9}", "");
        // The tokenizer has a token for each byte, after three special tokens.
        let ids: Vec<Value> = text.bytes().map(|byte| json!(u32::from(byte) + 3)).collect();
        let row = ranks[at % 2][at / 2]["input_ids"][0].as_array().unwrap();
        assert!(row.windows(ids.len()).any(|window| window == ids), "{at}: {text}");
    }
}

#[test]
fn documents_of_several_sources_say_which_one() {
    let workspace = with_chats(&[&[("user", "Two?"), ("assistant", "2")]]);
    workspace.write("texts.jsonl", "{\"text\": \"One.\"}\n{\"text\": \"Three.\"}\n");
    let texts = "    - {type: huggingface_instruct, name_or_path: texts.jsonl, format: text}\n";
    let (before, after) = RECIPE.split_once("  max_length").unwrap();
    workspace.write("two.yaml", &format!("{before}{texts}  max_length{after}"));
    let headings = |set: &str| -> String {
        let args = ["data", "two.yaml", "--show", "9", "--set", set];
        let shown = String::from_utf8(workspace.run(&args).stdout).unwrap();
        let is_heading = |line: &&str| line.starts_with('\u{2550}') || line.starts_with('\u{2500}');
        shown.lines().filter(is_heading).collect::<Vec<_>>().join("\n")
    };
    assert_snapshot!(headings("data.fuse_positions_prob=1"), @r"
    ══ pack 1 of 1: 3 documents, 38 tokens, 12 labels (31.6%), padded by 218 tokens, fused: its documents see each other
    ── document 1: 26 tokens, 2 labels (7.7%), of chats
    ── document 2: 5 tokens, 4 labels (80.0%), of texts.jsonl
    ── document 3: 7 tokens, 6 labels (85.7%), of texts.jsonl
    ══ source chats, split train
    ══ source texts.jsonl, split train
    ══ training data
    ");
    assert_snapshot!(headings("data.pack_samples=false"), @r"
    ══ sample 1 of 3: 26 tokens, 2 labels (7.7%), of chats, padded by 230 tokens
    ══ sample 2 of 3: 7 tokens, 6 labels (85.7%), of texts.jsonl, padded by 249 tokens
    ══ sample 3 of 3: 5 tokens, 4 labels (80.0%), of texts.jsonl, padded by 251 tokens
    ══ source chats, split train
    ══ source texts.jsonl, split train
    ══ training data
    ");
}

#[test]
fn what_is_held_out_and_what_ranks_pad_is_counted() {
    let workspace = Workspace::new();
    let args = ["data", "recipe.yaml", "--show", "1", "--set", "data.pack_samples=false"];
    let more = [
        "data.train_eval_split=[0.9,0.1]",
        "eval_interval=1",
        "sequence_parallel_size=3",
        "data.div_length=2",
    ];
    let more = more.into_iter().flat_map(|set| ["--set", set]);
    let shown = workspace.run(&args.into_iter().chain(more).collect::<Vec<_>>());
    let shown = String::from_utf8(shown.stdout).unwrap();
    let (_, counts) = shown.split_once("training data\n").unwrap();
    assert_snapshot!(counts, @r"
    max_length                 256
    longest sample             49 tokens
    samples dropped as longer  0
    samples kept               40
    tokens kept                1,935
    held out for evaluation    4 samples
    one epoch                  36 samples
    padding in an epoch        69 (3.8%)
    ");
}

#[test]
fn a_page_is_whole_and_shows_texts_as_text() {
    let workspace = with_chats(&[&[
        ("user", "<script>alert('1')</script>\u{0}"),
        ("assistant", "\u{5e9}\u{5dc}\u{5d5}\u{5dd} & <b>"),
    ]]);
    workspace.write("a<b>.yaml", RECIPE);
    let args = ["data", "a<b>.yaml", "--html", "data.html"];
    assert_snapshot!(workspace.show(&args), @r"
    exit status: 0
    ----- stdout -----

    ----- stderr -----
    wrote pack 1 of 1 to data.html
    ");
    let page = workspace.read("data.html");
    let (_, body) = page.split_once("</style>").unwrap();
    assert_snapshot!(body, @r#"
    <h1>a&lt;b&gt;.yaml: pack 1 of 1</h1>
    <div class="counts">
    <table><caption>source chats, split train</caption>
    <tr><th>read as</th><td>chats by role_mapping</td></tr>
    <tr><th>rows read</th><td>1</td></tr>
    <tr><th>rows dropped</th><td>0</td></tr>
    <tr><th>messages left out</th><td>0</td></tr>
    <tr><th>samples</th><td>1</td></tr>
    <tr><th>samples without a label</th><td>0</td></tr>
    <tr><th>tokens</th><td>63</td></tr>
    <tr><th>labels</th><td>15 (23.8%)</td></tr>
    <tr><th>replies</th><td>1</td></tr>
    <tr><th>replies without an end of turn</th><td>0</td></tr>
    <tr><th>rows that spell special tokens</th><td>0</td></tr>
    </table>
    <table><caption>training data</caption>
    <tr><th>max_length</th><td>256</td></tr>
    <tr><th>longest sample</th><td>63 tokens</td></tr>
    <tr><th>samples dropped as longer</th><td>0</td></tr>
    <tr><th>samples kept</th><td>1</td></tr>
    <tr><th>tokens kept</th><td>63</td></tr>
    <tr><th>packs</th><td>1, 24.6% full</td></tr>
    <tr><th>one epoch</th><td>1 pack</td></tr>
    <tr><th>padding in an epoch</th><td>193 (75.4%)</td></tr>
    </table>
    </div>
    <p class="legend"><mark>trained on <b>special token</b></mark> not trained on <b>special token</b></p>
    <details class="sequence" open><summary>pack 1 of 1: 1 document, 63 tokens, 15 labels (23.8%), padded by 193 tokens</summary>
    <details open><summary>document 1: 63 tokens, 15 labels (23.8%)</summary><pre dir="auto">
    <b>&lt;|im_start|&gt;</b>user
    &lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;␀<b>&lt;|im_end|&gt;</b>
    <b>&lt;|im_start|&gt;</b>assistant
    <mark>שלום &amp; &lt;b&gt;<b>&lt;|im_end|&gt;</b></mark>
    </pre>
    </details>
    </details>
    </html>
    "#);
    // Nothing is loaded.
    for part in ["<script", "http:", "https:", "src=", "url(", "@import"] {
        assert!(!page.contains(part), "{part}");
    }
    assert!(workspace.run(&[&args[..], &["--show-tokens", "4"]].concat()).status.success());
    // All but the first two and the last two tokens; of these only `<|im_end|>` is a label.
    let page = workspace.read("data.html");
    assert!(page.contains("<i>59 tokens with 14 labels left out</i>"), "{page}");
}

#[test]
fn what_is_dropped_is_said_as_in_training() {
    let workspace = with_chats(&[
        &[("user", "Two?"), ("assistant", "2")],
        &[("user", "Three?"), ("critic", "?")],
    ]);
    let of = |args: &[&str]| String::from_utf8(workspace.run(args).stderr).unwrap();
    let warnings = |text: String| -> Vec<String> {
        text.lines().filter(|line| line.contains("WARN")).map(str::to_owned).collect()
    };
    let trained = warnings(of(&["train", "recipe.yaml", "--device", "cpu"]));
    assert!(!trained.is_empty());
    for args in [
        ["data", "recipe.yaml", "--show", "1"].as_slice(),
        &["data", "recipe.yaml", "--steps", "1", "--out", "batches"],
        &["train", "recipe.yaml", "--mode", "process-data"],
    ] {
        assert_eq!(warnings(of(args)), trained, "{args:?}");
    }
}

#[test]
fn data_is_shown_or_written_and_not_both_or_neither() {
    let workspace = Workspace::new();
    assert_snapshot!(workspace.show(&["data", "recipe.yaml"]), @r"
    exit status: 2
    ----- stdout -----

    ----- stderr -----
    error: the following required arguments were not provided:
      --steps <N>
      --out <DIR>

    Usage: sterna data [OPTIONS] <RECIPE> --show <N>
           sterna data [OPTIONS] <RECIPE> --html <FILE>
           sterna data [OPTIONS] <RECIPE> --steps <N> --out <DIR>

    For more information, try '--help'.
    ");
    assert_snapshot!(workspace.show(&["data", "recipe.yaml", "--steps", "1"]), @r"
    exit status: 2
    ----- stdout -----

    ----- stderr -----
    error: the following required arguments were not provided:
      --out <DIR>

    Usage: sterna data [OPTIONS] <RECIPE> --show <N>
           sterna data [OPTIONS] <RECIPE> --html <FILE>
           sterna data [OPTIONS] <RECIPE> --steps <N> --out <DIR>

    For more information, try '--help'.
    ");
    let both = ["data", "recipe.yaml", "--show", "1", "--steps", "1", "--out", "batches"];
    assert_snapshot!(workspace.show(&both), @r"
    exit status: 2
    ----- stdout -----

    ----- stderr -----
    error: the argument '--show <N>' cannot be used with:
      --steps <N>
      --out <DIR>

    Usage: sterna data [OPTIONS] <RECIPE> --show <N>
           sterna data [OPTIONS] <RECIPE> --html <FILE>
           sterna data [OPTIONS] <RECIPE> --steps <N> --out <DIR>

    For more information, try '--help'.
    ");
    let tokens = ["data", "recipe.yaml", "--steps", "1", "--out", "batches", "--show-tokens", "1"];
    assert_snapshot!(workspace.show(&tokens), @r"
    exit status: 2
    ----- stdout -----

    ----- stderr -----
    error: the following required arguments were not provided:
      <--show <N>|--html <FILE>>

    Usage: sterna data [OPTIONS] <RECIPE> --show <N>
           sterna data [OPTIONS] <RECIPE> --html <FILE>
           sterna data [OPTIONS] <RECIPE> --steps <N> --out <DIR>

    For more information, try '--help'.
    ");
}
