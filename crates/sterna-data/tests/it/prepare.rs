//! From recipes to data: mixes, sampling, replication, filters, the cache, and what is refused.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};
use sterna_data::{Datasets, Error, MicroBatches, Progress, prepare, rng::PythonRandom};
use sterna_hf::Tokenizer;
use sterna_mesh::Mesh;

use crate::support::{real_inputs, recipe_from_json};

/// A folder with chats and a cache, and recipes over them.
struct Workplace {
    folder: tempfile::TempDir,
    tokenizer: Tokenizer,
}

impl Workplace {
    fn new() -> Self {
        let tokenizer = Tokenizer::from_dir(&real_inputs().join("SmolLM2-135M-Instruct")).unwrap();
        Self { folder: tempfile::tempdir().unwrap(), tokenizer }
    }

    /// Chats whose reply number `i` has `i % 7 + 1` words; the question names the chat.
    fn write_chats(&self, name: &str, count: usize) -> PathBuf {
        let path = self.folder.path().join(format!("{name}.jsonl"));
        let line = |i: usize| {
            let reply = "word ".repeat(i % 7 + 1);
            json!({"messages": [
                {"role": "user", "content": format!("{name} {i}")}, {"role": "assistant", "content": reply.trim_end()},
            ]})
            .to_string()
        };
        fs::write(&path, (0..count).map(|i| line(i) + "\n").collect::<String>()).unwrap();
        path
    }

    fn recipe(&self, sources: &Value, data: &Value, top: &Value) -> Value {
        let mut recipe = json!({
            "type": "sft",
            "model": {"name_or_path": "SmolLM2-135M-Instruct", "dtype": "float32"},
            "data": {
                "sources": sources, "max_length": 512, "num_proc": 1,
                "cache_dir": self.folder.path().join("cache").to_str().unwrap(),
            },
        });
        for (key, value) in data.as_object().unwrap() {
            recipe["data"][key] = value.clone();
        }
        for (key, value) in top.as_object().unwrap() {
            recipe[key] = value.clone();
        }
        recipe
    }

    fn prepare(&self, recipe: &Value, world_size: usize) -> Result<Datasets, Error> {
        prepare(&recipe_from_json(recipe), 8192, &self.tokenizer, world_size, &mut |_| ())
    }

    /// The question of each sample, in order.
    fn questions(&self, dataset: &sterna_data::Dataset) -> Vec<String> {
        (0..dataset.len())
            .map(|i| {
                let text = self.tokenizer.decode(&dataset.sample(i).unwrap().input_ids).unwrap();
                let question = text.split("<|im_start|>user\n").nth(1).unwrap();
                question.split("<|im_end|>").next().unwrap().to_owned()
            })
            .collect()
    }

    fn cache_entries(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.folder.path().join("cache")).unwrap();
        let mut entries: Vec<PathBuf> =
            entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
        entries.sort();
        entries
    }
}

fn chats(path: &Path) -> Value {
    json!({
        "type": "huggingface_instruct", "name_or_path": path.to_str().unwrap(), "split": "train",
        "role_mapping": {"user": "messages.role.user", "assistant": "messages.role.assistant"},
    })
}

#[test]
fn sources_are_mixed_sampled_and_shuffled() {
    let work = Workplace::new();
    let (a, b) = (chats(&work.write_chats("a", 20)), chats(&work.write_chats("b", 10)));
    let mut sampled = a.clone();
    sampled["sample_ratio"] = 0.33.into();
    sampled["sample_seed"] = 7.into();
    let recipe = work.recipe(&json!([sampled, b]), &json!({}), &json!({}));
    let data = work.prepare(&recipe, 1).unwrap();
    let mut concatenated: Vec<String> =
        PythonRandom::new(7).sample(20, 6).into_iter().map(|i| format!("a {i}")).collect();
    concatenated.extend((0..10).map(|i| format!("b {i}")));
    let order = sterna_data::rng::numpy_permutation(42, 16);
    let expected: Vec<String> = order.into_iter().map(|i| concatenated[i].clone()).collect();
    assert_eq!(work.questions(&data.train), expected);
    let samples: Vec<usize> =
        data.report.train.sources.iter().map(|source| source.stats.samples).collect();
    assert_eq!(samples, [6, 10]);
    assert_eq!(data.report.train.len, 16);
}

#[test]
fn a_source_is_in_the_mix_as_often_as_it_says() {
    let work = Workplace::new();
    let (mut a, b) = (chats(&work.write_chats("a", 4)), chats(&work.write_chats("b", 3)));
    let count = |recipe: &Value| {
        let mut questions = work.questions(&work.prepare(recipe, 1).unwrap().train);
        questions.sort();
        questions
    };
    a["epochs"] = 2.5.into();
    let questions = count(&work.recipe(&json!([a, b]), &json!({}), &json!({})));
    let chosen = PythonRandom::new(42).sample(4, 2);
    let mut expected: Vec<String> =
        (0..4).flat_map(|i| [i, i]).chain(chosen).map(|i| format!("a {i}")).collect();
    expected.extend((0..3).map(|i| format!("b {i}")));
    expected.sort();
    assert_eq!(questions, expected);
    a["epochs"] = 0.5.into();
    assert_eq!(count(&work.recipe(&json!([a, b]), &json!({}), &json!({}))).len(), 5);
}

/// Exact at `max_length` and one token above it.
#[test]
fn samples_longer_than_max_length_become_what_is_asked() {
    let work = Workplace::new();
    let a = chats(&work.write_chats("a", 7));
    let prepare = |max_length: usize, excess_length: &str| {
        let data =
            json!({"max_length": max_length, "excess_length": excess_length, "div_length": 1});
        work.prepare(&work.recipe(&json!([a]), &data, &json!({})), 1)
    };
    let whole = prepare(512, "drop").unwrap().train;
    let mut samples: Vec<_> = (0..whole.len()).map(|i| whole.sample(i).unwrap()).collect();
    samples.sort_by_key(|sample| sample.input_ids.len());
    let longest = samples.last().unwrap().input_ids.len();
    let lengths = |data: &Datasets| {
        let mut lengths: Vec<usize> =
            (0..data.train.len()).map(|i| data.train.sample_len(i)).collect();
        lengths.sort_unstable();
        lengths
    };
    let of = |len: usize| samples.iter().filter(|sample| sample.input_ids.len() == len).count();
    assert_eq!(of(longest), 1, "one sample is the longest");
    for excess_length in ["drop", "truncate", "split", "raise"] {
        let exact = prepare(longest, excess_length).unwrap();
        assert_eq!(exact.train.len(), 7, "{excess_length}");
        assert_eq!(exact.report.train.about_length(), None);
    }
    let limit = longest - 1;
    let dropped = prepare(limit, "drop").unwrap();
    assert_eq!(dropped.train.len(), 6);
    assert_eq!(
        dropped.report.train.about_length().unwrap(),
        format!(
            "dropped 1 sample longer than max_length {limit}; the longest has {longest} tokens"
        )
    );

    let truncated = prepare(limit, "truncate").unwrap();
    assert_eq!(lengths(&truncated).last(), Some(&limit));
    let cut = (0..7).map(|i| truncated.train.sample(i).unwrap());
    let cut: Vec<_> = cut.filter(|sample| sample.input_ids.len() == limit).collect();
    let (ids, labels) = (&samples[6].input_ids[..limit], &samples[6].labels[..limit]);
    assert!(cut.iter().any(|sample| sample.input_ids == ids && sample.labels == labels));

    // The rest of one token has nothing that predicts it.
    let split = prepare(limit, "split").unwrap();
    assert_eq!(lengths(&split), lengths(&truncated));
    let half = longest / 2;
    let split = prepare(half, "split").unwrap();
    assert!(lengths(&split).iter().all(|&len| len <= half));
    let trained = |data: &sterna_data::Dataset| -> usize {
        (0..data.len())
            .map(|i| data.sample(i).unwrap().labels.iter().filter(|&&label| label != -100).count())
            .sum()
    };
    // Only what a piece begins with is no label any more.
    let lost = trained(&whole) - trained(&split.train);
    assert!(lost <= 7 && trained(&split.train) > 0, "{lost}");

    let error = prepare(limit, "raise").unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "`1` samples are longer than max_length `{limit}` (longest `{longest}` tokens) and data.excess_length is `raise`"
        )
    );
    assert_ne!(dropped.fingerprint, truncated.fingerprint);
    assert_ne!(truncated.fingerprint, split.fingerprint);
}

/// Far too many samples are refused before there is memory for them.
#[test]
fn epochs_that_give_no_sample_or_too_many_are_refused() {
    let work = Workplace::new();
    let mut a = chats(&work.write_chats("a", 4));
    let prepare = |a: &Value| work.prepare(&work.recipe(&json!([a]), &json!({}), &json!({})), 1);
    a["epochs"] = 0.1.into();
    assert!(matches!(prepare(&a), Err(Error::NothingSampled { rows: 4, .. })));
    a["epochs"] = 1e18.into();
    assert!(matches!(prepare(&a), Err(Error::TooManySamples { .. })));
    a["epochs"] = 0.9.into();
    assert_eq!(prepare(&a).unwrap().train.len(), 4, "3.6 samples");
}

/// Of nothing that is cut a label is left, so that no source has a sample.
#[test]
fn samples_that_are_cut_before_their_labels_are_dropped() {
    let work = Workplace::new();
    let sources = [chats(&work.write_chats("a", 7)), chats(&work.write_chats("b", 3))];
    let prepare = |max_length: u64, excess_length: &str| {
        let data =
            json!({"max_length": max_length, "excess_length": excess_length, "div_length": 1});
        work.prepare(&work.recipe(&json!(sources), &data, &json!({})), 1)
    };
    for (max_length, excess_length) in [(1, "split"), (1, "truncate"), (5, "truncate")] {
        let error = prepare(max_length, excess_length).unwrap_err();
        assert!(matches!(error, Error::AllTooLong { dropped: 10, .. }), "{error}");
    }
    assert_eq!(prepare(1 << 32, "split").unwrap().train.len(), 10, "no sample is longer");
}

#[test]
fn evaluation_data_comes_from_a_split_or_from_sources() {
    let work = Workplace::new();
    let a = chats(&work.write_chats("a", 20));
    let b = chats(&work.write_chats("b", 5));
    let top = json!({"eval_interval": 1});
    let recipe = work.recipe(&json!([a]), &json!({"train_eval_split": [0.75, 0.25]}), &top);
    let split = work.prepare(&recipe, 1).unwrap();
    let mut all = work.questions(&split.train);
    let eval = work.questions(split.eval.as_ref().unwrap());
    assert_eq!((all.len(), eval.len()), (15, 5));
    all.extend(eval);
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 20);

    let recipe = work.recipe(&json!([a]), &json!({"eval_sources": [b]}), &top);
    let own = work.prepare(&recipe, 1).unwrap();
    assert_eq!((own.train.len(), own.eval.unwrap().len()), (20, 5));
    assert_eq!(own.report.eval.unwrap().sources.len(), 1);
}

#[test]
fn min_iterations_repeats_the_data() {
    let work = Workplace::new();
    let a = chats(&work.write_chats("a", 3));
    let top = json!({"min_iterations": 4, "gradient_accumulation_steps": 2});
    let data = work.prepare(&work.recipe(&json!([a]), &json!({}), &top), 2).unwrap();
    let questions = work.questions(&data.train);
    assert_eq!(questions.len(), 4 * 2 * 2);
    assert_eq!(questions[..3], questions[3..6]);
    assert_eq!(questions[15], questions[0]);
}

#[test]
fn held_out_samples_are_not_trained_on_when_data_is_repeated() {
    let work = Workplace::new();
    let a = chats(&work.write_chats("a", 20));
    let top = json!({"min_iterations": 50, "eval_interval": 1});
    let recipe = work.recipe(&json!([a]), &json!({"train_eval_split": [0.75, 0.25]}), &top);
    // More ranks than evaluation samples: those need not give every rank one.
    let data = work.prepare(&recipe, 8).unwrap();
    let (train, eval) = (work.questions(&data.train), work.questions(data.eval.as_ref().unwrap()));
    assert_eq!((train.len(), eval.len()), (50 * 8, 5));
    assert!(eval.iter().all(|question| !train.contains(question)));
}

#[test]
fn long_samples_are_dropped_and_counted() {
    let work = Workplace::new();
    let a = chats(&work.write_chats("a", 21));
    let data = work.prepare(&work.recipe(&json!([a]), &json!({}), &json!({})), 1).unwrap();
    let mut lengths: Vec<usize> = (0..21).map(|i| data.train.sample_len(i)).collect();
    lengths.sort_unstable();
    let (shortest, longest) = (lengths[0], lengths[20]);
    let limit = longest - 1;
    let too_long = lengths.iter().filter(|&&len| len > limit).count();

    let cut = work
        .prepare(&work.recipe(&json!([a]), &json!({"max_length": limit}), &json!({})), 1)
        .unwrap();
    assert_eq!(cut.report.train.dropped_too_long, too_long);
    assert_eq!(cut.report.train.longest, longest);
    assert_eq!(cut.train.len(), 21 - too_long);

    let none = work
        .prepare(&work.recipe(&json!([a]), &json!({"max_length": 5}), &json!({})), 1)
        .unwrap_err();
    assert_eq!(
        none.to_string(),
        format!(
            "no data left: all `21` samples are longer than max_length `5` (shortest `{shortest}`, longest `{longest}` tokens)"
        )
    );
    assert_eq!(none.hint().unwrap(), "raise data.max_length");
}

#[test]
fn packs_hold_every_sample_once() {
    let work = Workplace::new();
    let a = chats(&work.write_chats("a", 50));
    for packing in ["reference", "global"] {
        let keys =
            json!({"pack_samples": true, "packing": packing, "max_length": 200, "num_proc": 7});
        let data = work.prepare(&work.recipe(&json!([a]), &keys, &json!({})), 1).unwrap();
        let mut samples = 0;
        for i in 0..data.train.len() {
            let pack = data.train.sample(i).unwrap();
            assert_eq!(pack.input_ids.len(), pack.seqlens.iter().sum::<usize>());
            assert_eq!(pack.input_ids.len(), data.train.sample_len(i));
            assert!(pack.input_ids.len() <= 200);
            let restarts = pack.position_ids.iter().filter(|&&position| position == 0).count();
            assert_eq!(restarts, pack.seqlens.len());
            samples += pack.seqlens.len();
        }
        assert_eq!(samples, 50);
        let report = data.report.train.packs.unwrap();
        assert_eq!(report.packs, data.train.len());
        assert!(report.longest <= 200 && report.fill > 0.5 && report.fill <= 1.0, "{report:?}");
    }
}

#[test]
fn too_little_data_is_refused_with_a_way_out() {
    let work = Workplace::new();
    let a = chats(&work.write_chats("a", 3));
    let error = work.prepare(&work.recipe(&json!([a]), &json!({}), &json!({})), 4).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the training data has `3` samples, required: at least one for each of `4` ranks"
    );
    assert!(error.hint().unwrap().contains("min_iterations"));
    let error = work
        .prepare(&work.recipe(&json!([a]), &json!({}), &json!({"micro_batch_size": 4})), 1)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the training data has `3` samples, `3` for each of `1` ranks, required: micro_batch_size `4` for each"
    );
    let keys = json!({"pack_samples": true, "drop_last": true});
    let error = work.prepare(&work.recipe(&json!([a]), &keys, &json!({})), 1).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("no data left: drop_last dropped every pack, none of `3` samples"),
        "{error}"
    );
    let bad = work.folder.path().join("bad.jsonl");
    fs::write(&bad, "{\"messages\": []}\n").unwrap();
    let error =
        work.prepare(&work.recipe(&json!([chats(&bad)]), &json!({}), &json!({})), 1).unwrap_err();
    assert!(matches!(error, Error::NothingLeft { .. }), "{error}");
    assert!(!work.cache_entries().iter().any(|path| path.to_string_lossy().contains("incomplete")));
}

#[test]
fn the_cache_serves_only_what_was_asked_for() {
    let work = Workplace::new();
    let path = work.write_chats("a", 12);
    let a = chats(&path);
    let from_cache = |data: &Value| {
        let data = work.prepare(&work.recipe(&json!([a]), data, &json!({})), 1).unwrap();
        data.report.train.sources[0].from_cache
    };
    assert!(!from_cache(&json!({})));
    assert!(from_cache(&json!({})));
    // What happens after tokenizing does not need other tokens.
    assert!(from_cache(
        &json!({"max_length": 100, "pack_samples": true, "seed": 3, "num_proc": 5})
    ));
    // What changes the tokens or labels does.
    assert!(!from_cache(&json!({"label_mask": "reference"})));
    assert!(!from_cache(&json!({"mask_inputs": false})));
    assert!(!from_cache(&json!({"ignore_empty_think": true})));
    let mut sliced = a.clone();
    sliced["split"] = "train[:5]".into();
    let data = work.prepare(&work.recipe(&json!([sliced]), &json!({}), &json!({})), 1).unwrap();
    assert_eq!((data.train.len(), data.report.train.sources[0].from_cache), (5, false));
    // The same name with other content, of the same length.
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("word", "bird")).unwrap();
    assert!(!from_cache(&json!({})));
    assert!(from_cache(&json!({})));
}

#[test]
fn weights_are_shares_of_the_samples() {
    let work = Workplace::new();
    let (mut a, mut b) = (chats(&work.write_chats("a", 20)), chats(&work.write_chats("b", 10)));
    (a["weight"], b["weight"]) = (3.into(), 1.into());
    let shares = |data: Value| {
        let recipe = work.recipe(&json!([a, b]), &data, &json!({}));
        let questions = work.questions(&work.prepare(&recipe, 1).unwrap().train);
        let of = |name: &str| {
            let mut of: Vec<_> = questions.iter().filter(|text| text.contains(name)).collect();
            let count = of.len();
            of.sort();
            of.dedup();
            (count, of.len())
        };
        (of("a "), of("b "))
    };
    // All 20 of `a` and a third as many of `b`; or all 10 of `b` and three times as many of `a`.
    assert_eq!(shares(json!({})), ((20, 20), (7, 7)));
    assert_eq!(shares(json!({"stopping_strategy": "first_exhausted"})), ((20, 20), (7, 7)));
    assert_eq!(shares(json!({"stopping_strategy": "all_exhausted"})), ((30, 20), (10, 10)));
    // Shares are those of what is trained on: of each seven replies, those of one to three words fit.
    let lens = |name: &Value| {
        let recipe = work.recipe(&json!([name]), &json!({}), &json!({}));
        let train = work.prepare(&recipe, 1).unwrap().train;
        (0..train.len()).map(|index| train.sample_len(index)).collect::<Vec<_>>()
    };
    let mut lens_of_a = lens(&a);
    lens_of_a.sort_unstable();
    let max_length = lens_of_a[9];
    let fit = |name: &Value| lens(name).into_iter().filter(|len| *len <= max_length).count();
    let (of_a, of_b) = (fit(&a), fit(&b));
    assert!(of_a < 20 && of_b < 10 && of_b > 0, "{of_a} {of_b}");
    let ((num_a, _), (num_b, _)) = shares(json!({"max_length": max_length}));
    assert_eq!((num_a, num_b), (of_a.min(3 * of_b), of_b.min((of_a + 1) / 3)));
    let recipe = work.recipe(&json!([a, b]), &json!({"max_length": 5}), &json!({}));
    assert!(matches!(work.prepare(&recipe, 1), Err(Error::NothingSampled { rows: 20, .. })));
}

#[test]
fn progress_is_told_of_what_is_not_in_the_cache() {
    let work = Workplace::new();
    let (a, b) = (chats(&work.write_chats("a", 600)), chats(&work.write_chats("b", 3)));
    let heard = |sources: &Value| {
        let mut heard = Vec::new();
        let recipe = recipe_from_json(&work.recipe(sources, &json!({}), &json!({})));
        let on_progress = &mut |progress: Progress<'_>| {
            let file = progress.source.rsplit('/').next().unwrap().to_owned();
            heard.push((file, progress.done, progress.total));
        };
        prepare(&recipe, 8192, &work.tokenizer, 1, on_progress).unwrap();
        heard
    };
    let of = |file: &str, done, total| (file.to_owned(), done, total);
    assert_eq!(heard(&json!([b])), [of("b.jsonl", 0, 3), of("b.jsonl", 3, 3)]);
    let of_both = heard(&json!([b, a]));
    assert_eq!(of_both[0], of("a.jsonl", 0, 600), "the other is in the cache");
    assert_eq!(of_both[of_both.len() - 1], of("a.jsonl", 600, 600));
    assert!(of_both.len() > 2 && of_both.is_sorted(), "{of_both:?}");
}

#[test]
fn a_missing_cache_can_be_an_error() {
    let work = Workplace::new();
    let a = chats(&work.write_chats("a", 4));
    let strict = work.recipe(&json!([a]), &json!({"fail_on_missing_cache": true}), &json!({}));
    let error = work.prepare(&strict, 1).unwrap_err();
    assert!(matches!(error, Error::MissingCache { .. }), "{error}");
    assert!(error.to_string().ends_with("is missing and fail_on_missing_cache is on"), "{error}");
    work.prepare(&work.recipe(&json!([a]), &json!({}), &json!({})), 1).unwrap();
    assert!(work.prepare(&strict, 1).is_ok());
}

#[test]
fn a_damaged_cache_entry_is_rebuilt() {
    let work = Workplace::new();
    let a = chats(&work.write_chats("a", 9));
    let recipe = work.recipe(&json!([a]), &json!({}), &json!({}));
    let samples = || {
        let data = work.prepare(&recipe, 1).unwrap();
        let samples: Vec<_> = (0..9).map(|i| data.train.sample(i).unwrap()).collect();
        (samples, data.report.train.sources[0].from_cache)
    };
    let (sound, _) = samples();
    let [entry] = &work.cache_entries()[..] else { panic!("one entry") };
    let flip = |name: &str| {
        let path = entry.join(name);
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).unwrap();
    };
    let truncate = |name: &str| {
        let bytes = fs::read(entry.join(name)).unwrap();
        fs::write(entry.join(name), &bytes[..bytes.len() - 1]).unwrap();
    };
    let damages: [(&str, &dyn Fn()); 6] = [
        ("changed token", &|| flip("tokens.u32")),
        ("changed label", &|| flip("is_label.u8")),
        ("cut", &|| truncate("tokens.u32")),
        ("missing", &|| fs::remove_file(entry.join("lengths.u32")).unwrap()),
        ("cut manifest", &|| truncate("manifest.json")),
        ("no manifest", &|| fs::remove_file(entry.join("manifest.json")).unwrap()),
    ];
    for (what, damage) in damages {
        damage();
        assert_eq!(samples(), (sound.clone(), false), "{what}");
        assert_eq!(samples(), (sound.clone(), true), "{what}");
        assert_eq!(work.cache_entries().len(), 1, "{what}: something was left over");
    }
}

#[test]
fn left_overs_of_a_killed_run_are_removed() {
    let work = Workplace::new();
    let a = chats(&work.write_chats("a", 4));
    let recipe = work.recipe(&json!([a]), &json!({}), &json!({}));
    work.prepare(&recipe, 1).unwrap();
    let entry = work.cache_entries().remove(0);
    let dead = entry
        .with_file_name(format!("{}.incomplete-1-2", entry.file_name().unwrap().to_str().unwrap()));
    fs::rename(&entry, &dead).unwrap();
    assert!(!work.prepare(&recipe, 1).unwrap().report.train.sources[0].from_cache);
    assert_eq!(work.cache_entries(), [entry]);
}

#[test]
fn runs_at_the_same_time_build_an_entry_once() {
    let work = Workplace::new();
    let a = chats(&work.write_chats("a", 300));
    let recipe = work.recipe(&json!([a]), &json!({}), &json!({}));
    let built: usize = thread::scope(|scope| {
        let runs: Vec<_> =
            (0..4).map(|_| scope.spawn(|| work.prepare(&recipe, 1).unwrap())).collect();
        let reports =
            runs.into_iter().map(|run| run.join().unwrap().report.train.sources[0].from_cache);
        reports.filter(|from_cache| !from_cache).count()
    });
    assert_eq!(built, 1);
    assert_eq!(work.cache_entries().len(), 1);
}

#[test]
fn a_file_that_changes_before_it_is_read_is_no_entry_of_what_it_was() {
    let work = Workplace::new();
    let path = work.write_chats("a", 9);
    let recipe = work.recipe(&json!([chats(&path)]), &json!({}), &json!({}));
    work.prepare(&recipe, 1).unwrap();
    let entry = work.cache_entries().remove(0);
    fs::remove_dir_all(&entry).unwrap();
    // As a run that builds the same entry keeps another waiting, which has hashed the files by then.
    let lock = fs::File::open(entry.with_extension("lock")).unwrap();
    lock.lock().unwrap();
    let error = thread::scope(|scope| {
        let run = scope.spawn(|| work.prepare(&recipe, 1).map(|_| ()).unwrap_err());
        thread::sleep(Duration::from_secs(2));
        work.write_chats("a", 5);
        drop(lock);
        run.join().unwrap()
    });
    assert!(matches!(error, Error::SourceChanged { .. }), "{error}");
    assert_eq!(work.cache_entries(), Vec::<PathBuf>::new());
    assert_eq!(work.prepare(&recipe, 1).unwrap().train.len(), 5);
}

#[test]
fn an_entry_that_is_cut_under_a_run_is_an_error_and_rebuilt_by_the_next() {
    let work = Workplace::new();
    let recipe = work.recipe(&json!([chats(&work.write_chats("a", 9))]), &json!({}), &json!({}));
    let data = work.prepare(&recipe, 1).unwrap();
    let entry = work.cache_entries().remove(0);
    fs::File::options().write(true).open(entry.join("tokens.u32")).unwrap().set_len(8).unwrap();
    let error = (0..9).find_map(|i| data.train.sample(i).err()).unwrap();
    assert!(matches!(error, Error::CacheChanged { .. }), "{error}");
    assert!(error.hint().is_some());
    assert!(!work.prepare(&recipe, 1).unwrap().report.train.sources[0].from_cache);
}

#[test]
fn a_manifest_that_names_other_files_is_damaged() {
    let work = Workplace::new();
    let recipe = work.recipe(&json!([chats(&work.write_chats("a", 9))]), &json!({}), &json!({}));
    work.prepare(&recipe, 1).unwrap();
    let manifest = work.cache_entries().remove(0).join("manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    for outside in ["../outside", "/etc/passwd", "lengths.u32"] {
        fs::write(&manifest, text.replace("is_label.u8", outside)).unwrap();
        assert!(!work.prepare(&recipe, 1).unwrap().report.train.sources[0].from_cache, "{outside}");
    }
}

/// Clocks of hosts that share a disk differ, and jump: times of files say nothing.
#[test]
fn the_times_of_files_decide_nothing() {
    let work = Workplace::new();
    let path = work.write_chats("a", 9);
    let recipe = work.recipe(&json!([chats(&path)]), &json!({}), &json!({}));
    work.prepare(&recipe, 1).unwrap();
    let entry = work.cache_entries().remove(0);
    let set_time = |path: &Path, time| {
        fs::File::options().append(true).open(path).unwrap().set_modified(time).unwrap();
    };
    let future = SystemTime::now() + Duration::from_hours(40 * 365 * 24);
    for (data_time, entry_time) in
        [(future, SystemTime::UNIX_EPOCH), (SystemTime::UNIX_EPOCH, future)]
    {
        set_time(&path, data_time);
        for name in ["tokens.u32", "manifest.json"] {
            set_time(&entry.join(name), entry_time);
        }
        assert!(work.prepare(&recipe, 1).unwrap().report.train.sources[0].from_cache);
    }
    // Another content of the same length and time is another source.
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, fs::read_to_string(&path).unwrap().replace("word", "term")).unwrap();
    set_time(&path, time);
    assert!(!work.prepare(&recipe, 1).unwrap().report.train.sources[0].from_cache);
}

/// A small file system in memory, unmounted when it is dropped; `None`, and a line that says so, where mounting is not allowed.
struct Mounted(PathBuf);

impl Mounted {
    #[expect(clippy::print_stderr, reason = "a test that is skipped must say so")]
    fn new(dir: PathBuf, options: &str) -> Option<Self> {
        fs::create_dir(&dir).unwrap();
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&dir).output();
        let is_mounted = mount.is_ok_and(|mount| mount.status.success());
        if !is_mounted {
            eprintln!("skipped: full and read-only disks, because `mount` is not allowed here");
        }
        is_mounted.then_some(Self(dir))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_disk_that_fills_while_tokenizing_is_an_error_that_leaves_nothing() {
    let work = Workplace::new();
    let Some(disk) = Mounted::new(work.folder.path().join("cache"), "size=64k") else { return };
    let recipe = work.recipe(&json!([chats(&work.write_chats("a", 2000))]), &json!({}), &json!({}));
    let error = work.prepare(&recipe, 1).map(|_| ()).unwrap_err();
    let Error::Write { source, .. } = &error else { panic!("{error}") };
    assert_eq!(source.kind(), std::io::ErrorKind::StorageFull, "{error}");
    assert_eq!(work.cache_entries(), Vec::<PathBuf>::new());
    drop(disk);
    assert_eq!(work.prepare(&recipe, 1).unwrap().train.len(), 2000);
}

#[test]
fn a_cache_that_cannot_be_written_serves_what_it_has_and_refuses_the_rest() {
    let work = Workplace::new();
    let recipe = work.recipe(&json!([chats(&work.write_chats("a", 9))]), &json!({}), &json!({}));
    let Some(disk) = Mounted::new(work.folder.path().join("cache"), "size=1m") else { return };
    work.prepare(&recipe, 1).unwrap();
    assert!(
        Command::new("mount").args(["-o", "remount,ro"]).arg(&disk.0).status().unwrap().success()
    );
    assert!(work.prepare(&recipe, 1).unwrap().report.train.sources[0].from_cache);
    let other = work.recipe(&json!([chats(&work.write_chats("b", 9))]), &json!({}), &json!({}));
    let error = work.prepare(&other, 1).map(|_| ()).unwrap_err();
    let Error::Write { source, .. } = &error else { panic!("{error}") };
    assert_eq!(source.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{error}");
}

/// The groups of an epoch read every sample as often as each other, and every epoch is the same.
#[test]
fn groups_share_the_epoch() {
    let work = Workplace::new();
    let a = chats(&work.write_chats("a", 13));
    let recipe = work.recipe(
        &json!([a]),
        &json!({}),
        &json!({"sequence_parallel_size": 3, "micro_batch_size": 1}),
    );
    let recipe = recipe_from_json(&recipe);
    let data = prepare(&recipe, 8192, &work.tokenizer, 6, &mut |_| ()).unwrap();
    let group = |dp_rank| {
        let mesh = Mesh::new(3 * dp_rank as usize, 6, 3).expect("it divides");
        MicroBatches::new(&data.train, &recipe, mesh, 8192, work.tokenizer.pad_token_id())
    };
    // 13 samples wrap to 18: 3 for each of 6 ranks, so 9 micro-batches for each group of 3.
    let mut counts = [0; 13];
    for dp_rank in 0..2 {
        let batches = group(dp_rank);
        assert_eq!(batches.len(), 9);
        (0..9).for_each(|i| counts[batches.sample_indices(i)[0]] += 1);
        let once: Vec<_> = group(dp_rank).map(Result::unwrap).collect();
        let again: Vec<_> = group(dp_rank).map(Result::unwrap).collect();
        assert_eq!(once, again);
        // 256 is not a multiple of 3: rows are padded, not refused.
        assert!(once.iter().all(|batch| batch.len == 258));
    }
    assert_eq!(counts.iter().sum::<i32>(), 18);
    assert!(counts.iter().all(|&count| count == 1 || count == 2));
}
