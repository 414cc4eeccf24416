//! Documents of a packed batch must not see each other, however the sequence is split.

use sterna_comm::Comm;
use sterna_testkit::spawn_ranks;

use crate::tiny::{Batch, How, Tiny, alone, together};

/// A triangle and a window, each by the kernels of this processor and, for softcapped scores, by products of tiles; layers of both kinds; a
/// norm over all heads; the states and the convolution of a delta net.
const MODELS: [&str; 6] =
    ["llama_tied", "mistral_window", "gemma2", "gemma4_text", "olmo3", "qwen3_5_text_biased"];

/// Changes the first token of each document in turn: exactly the logits of that document may change.
fn probe(comm: &Comm) {
    for name in MODELS {
        let tiny = Tiny::fixture(name);
        let batch = Batch { lengths: vec![7, 1, 10, 6], ..tiny.batch.clone() };
        let before = tiny.run(comm, &batch, How::PLAIN).logits;
        for changed in batch.documents() {
            let mut batch = batch.clone();
            let token = &mut batch.input_ids[changed.start as usize];
            *token = (*token + 11) % 64;
            let after = tiny.run(comm, &batch, How::PLAIN).logits;
            for document in batch.documents() {
                let rows = |logits: &tch::Tensor| {
                    logits.narrow(0, document.start, document.end - document.start)
                };
                let is_changed = rows(&before) != rows(&after);
                assert_eq!(
                    is_changed,
                    document == changed,
                    "{name}: {document:?} when {changed:?} changes"
                );
            }
        }
    }
}

/// Changes the last token of a document: of its logits only those of that token may change.
fn probe_the_future(comm: &Comm) {
    for name in MODELS {
        let tiny = Tiny::fixture(name);
        let batch = Batch { lengths: vec![7, 1, 10, 6], ..tiny.batch.clone() };
        let before = tiny.run(comm, &batch, How::PLAIN).logits;
        for document in batch.documents() {
            let mut batch = batch.clone();
            let last = document.end - 1;
            let token = &mut batch.input_ids[last as usize];
            *token = (*token + 11) % 64;
            let after = tiny.run(comm, &batch, How::PLAIN).logits;
            let changed: Vec<i64> =
                (0..24).filter(|row| before.get(*row) != after.get(*row)).collect();
            assert_eq!(changed, [last], "{name}: {document:?}");
        }
    }
}

#[test]
fn one_rank_keeps_documents_apart() {
    probe(&alone());
}

#[test]
fn no_token_sees_a_later_one() {
    probe_the_future(&alone());
}

#[test]
fn no_token_sees_a_later_one_on_two_ranks() {
    spawn_ranks(2, |_| probe_the_future(&together(2)));
}

#[test]
fn two_ranks_keep_documents_apart() {
    spawn_ranks(2, |_| probe(&together(2)));
}

#[test]
fn three_ranks_keep_documents_apart() {
    spawn_ranks(3, |_| probe(&together(3)));
}
