//! Attention of tiles of queries with streamed keys and values, against all at once.

use std::convert::Infallible;
use std::ops::Range;

use proptest::prelude::*;
use sterna_ops::attention::{
    AttentionSpec, Documents, Implementation, KeysValues, Streamed, backward, forward,
};
use sterna_ops::tile::tiles;
use tch::{Kind, Tensor};

use crate::oracle::{AUTOGRAD, assert_close, random};

/// Keys and values in memory, and a record of what was asked of them.
struct Recorded {
    k: Tensor,
    v: Tensor,
    fetched: Vec<Range<i64>>,
    announced: Vec<Range<i64>>,
}

impl KeysValues for Recorded {
    type Error = Infallible;

    fn fetch(&mut self, tokens: &Range<i64>) -> Result<(Tensor, Tensor), Infallible> {
        self.fetched.push(tokens.clone());
        Ok((narrow(&self.k, tokens).copy(), narrow(&self.v, tokens).copy()))
    }

    fn prefetch(&mut self, tokens: &Range<i64>) -> Result<(), Infallible> {
        self.announced.push(tokens.clone());
        Ok(())
    }
}

fn narrow(x: &Tensor, tokens: &Range<i64>) -> Tensor {
    x.narrow(0, tokens.start, tokens.end - tokens.start)
}

/// A tile of queries and the chunks that were fetched for it.
type Fetched = (Range<i64>, Vec<Range<i64>>);

struct Case {
    spec: AttentionSpec,
    documents: Documents,
    query_tile_len: i64,
    key_chunk_len: i64,
    kind: Kind,
    head_dim: i64,
}

impl Case {
    fn new(kv_of_q: &[usize], lengths: &[i64], window: Option<i64>, tile: i64, chunk: i64) -> Case {
        let mut end = 0;
        let ranges = lengths.iter().map(|len| {
            end += len;
            end - len..end
        });
        Case {
            documents: Documents::new(ranges.collect()),
            spec: AttentionSpec {
                kv_of_q: kv_of_q.to_vec(),
                scale: 0.3,
                softcap: None,
                sliding_window: window,
                implementation: Implementation::Automatic,
            },
            query_tile_len: tile,
            key_chunk_len: chunk,
            kind: Kind::Double,
            head_dim: 8,
        }
    }

    /// `o`, `lse`, `d_q`, `d_k` and `d_v`, all at once and streamed, and the chunks that were fetched for each tile.
    fn run(&self) -> ([Tensor; 5], [Tensor; 5], Vec<Fetched>) {
        let s = self.documents.num_tokens();
        let (n, h) = (self.spec.kv_of_q.len() as i64, self.head_dim);
        let num_kv = self.spec.kv_of_q.last().map_or(0, |kv| *kv as i64 + 1);
        // Every dtype has the same values.
        let input = |shape: &[i64], seed| {
            (random(shape, seed) * 2.0).to_kind(Kind::BFloat16).to_kind(self.kind)
        };
        let [q, d_o] = [1, 4].map(|seed| input(&[s, n, h], seed));
        let [k, v] = [2, 3].map(|seed| input(&[s, num_kv, h], seed));
        let (o, lse) = forward(&q, &k, &v, &self.spec, &self.documents);
        let (d_q, d_k, d_v) = backward(&d_o, &q, &k, &v, &o, &lse, &self.spec, &self.documents);

        let streamed = Streamed {
            spec: &self.spec,
            documents: &self.documents,
            key_chunk_len: self.key_chunk_len,
        };
        let [o_tiles, d_q_tiles] = [q.zeros_like(), q.zeros_like()];
        let [d_k_sum, d_v_sum] = [k.zeros_like(), v.zeros_like()].map(|x| x.to_kind(lse.kind()));
        let lse_tiles = lse.zeros_like();
        let mut all_fetched = Vec::new();
        // From the last to the first, as a backward does.
        for tile in tiles(s, self.query_tile_len).rev() {
            let source = || Recorded {
                k: k.shallow_clone(),
                v: v.shallow_clone(),
                fetched: Vec::new(),
                announced: Vec::new(),
            };
            let mut kv = source();
            let q = narrow(&q, &tile);
            let Ok((o_tile, lse_tile)) = streamed.forward(&q, &tile, &mut kv);
            assert_eq!(kv.announced, kv.fetched[1..], "each fetch but the first is announced");
            let fetched = kv.fetched;
            let mut kv = source();
            let Ok(d_q_tile) = streamed.backward(
                &narrow(&d_o, &tile),
                &q,
                &o_tile,
                &lse_tile,
                &tile,
                &mut kv,
                |chunk, d_k, d_v| {
                    let _ = narrow(&d_k_sum, chunk).g_add_(&d_k);
                    let _ = narrow(&d_v_sum, chunk).g_add_(&d_v);
                    Ok(())
                },
            );
            assert_eq!(kv.fetched, fetched, "the backward reads what the forward read");
            narrow(&o_tiles, &tile).copy_(&o_tile);
            narrow(&d_q_tiles, &tile).copy_(&d_q_tile);
            lse_tiles.narrow(1, tile.start, tile.end - tile.start).copy_(&lse_tile);
            all_fetched.push((tile, fetched));
        }
        let tiled = [o_tiles, lse_tiles, d_q_tiles, d_k_sum, d_v_sum];
        ([o, lse, d_q, d_k, d_v], tiled, all_fetched)
    }

    fn check(&self, tolerance: f64) {
        let (whole, tiled, _) = self.run();
        for (name, (tiled, whole)) in
            ["o", "lse", "d_q", "d_k", "d_v"].iter().zip(tiled.iter().zip(&whole))
        {
            assert_close(name, tiled, whole, tolerance);
        }
    }
}

#[test]
fn documents_across_tiles_and_chunks() {
    // Tiles within a document, documents within a tile, chunks longer and shorter than tiles.
    for (tile, chunk) in [(7, 5), (5, 7), (16, 16), (40, 3), (3, 40), (1, 1)] {
        Case::new(&[0, 0, 1, 1], &[1, 17, 2, 30, 1, 9], None, tile, chunk).check(AUTOGRAD);
    }
}

#[test]
fn uneven_head_maps() {
    Case::new(&[0, 0, 0, 1, 1], &[20, 19], None, 6, 9).check(AUTOGRAD);
    Case::new(&[0, 1, 1, 1], &[20, 19], None, 9, 6).check(AUTOGRAD);
    Case::new(&[0, 0, 1, 2, 2], &[20, 19], Some(4), 9, 6).check(AUTOGRAD);
}

#[test]
fn windows_across_tiles_and_chunks() {
    for window in [1, 5, 40, 200] {
        Case::new(&[0, 0, 1], &[39, 300, 3], Some(window), 70, 64).check(AUTOGRAD);
        Case::new(&[0, 0, 1], &[39, 300, 3], Some(window), 170, 33).check(AUTOGRAD);
    }
    // The mask has 512 rows at most: tiles of queries longer and shorter than it.
    Case::new(&[0, 0], &[1700, 5], Some(1100), 700, 600).check(AUTOGRAD);
    Case::new(&[0, 0], &[1700, 5], Some(1100), 1705, 300).check(AUTOGRAD);
}

/// One kernel call for each document, as unstreamed.
#[test]
fn a_chunk_that_covers_whole_documents_gives_the_same_bits() {
    for (kind, head_dim) in
        [(Kind::Double, 8), (Kind::Float, 8), (Kind::BFloat16, 8), (Kind::BFloat16, 64)]
    {
        let lengths = [25, 15, 40, 39, 1];
        let case = Case { kind, head_dim, ..Case::new(&[0, 0, 1], &lengths, None, 40, 40) };
        let (whole, tiled, _) = case.run();
        for (name, (tiled, whole)) in ["o", "lse", "d_q"].iter().zip(tiled.iter().zip(&whole)) {
            assert_close(name, tiled, whole, 0.0);
        }
        for (tiled, whole) in tiled.iter().zip(&whole).skip(3) {
            assert_close("d_k or d_v", &tiled.to_kind(kind), whole, 0.0);
        }
    }
}

/// Shares are merged in single precision, so streaming adds at most one rounding (of the share) to the one of the result.
#[test]
fn shares_in_half_precision_cost_at_most_one_more_rounding() {
    let lengths = [300, 500];
    Case { kind: Kind::Float, ..Case::new(&[0, 0, 1], &lengths, None, 128, 100) }.check(2e-5);
    for (head_dim, window) in [(8, None), (64, None), (64, Some(70))] {
        let case =
            |kind| Case { kind, head_dim, ..Case::new(&[0, 0, 1], &lengths, window, 128, 100) };
        let (exact, ..) = case(Kind::Double).run();
        let (whole, tiled, _) = case(Kind::BFloat16).run();
        for (name_idx, name) in ["o", "lse", "d_q", "d_k", "d_v"].iter().enumerate() {
            let error = |x: &Tensor| {
                let difference = x.to_kind(Kind::Double) - &exact[name_idx];
                difference.square().mean(None::<Kind>).double_value(&[]).sqrt()
            };
            let (tiled, whole) = (error(&tiled[name_idx]), error(&whole[name_idx]));
            assert!(
                tiled <= whole * 2.0_f64.sqrt(),
                "{name}: rms error {tiled:e} streamed, {whole:e} at once"
            );
        }
    }
}

#[test]
fn only_what_a_tile_sees_is_fetched() {
    let case = Case::new(&[0], &[10, 40, 14], None, 16, 12);
    // 64 tokens are 4 tiles of 16, and 6 chunks of 10 or 11.
    let (_, _, fetched) = case.run();
    assert_eq!(
        fetched,
        [
            (48..64, vec![10..11, 11..22, 22..33, 33..44, 44..54, 54..64]),
            (32..48, vec![10..11, 11..22, 22..33, 33..44, 44..48]),
            (16..32, vec![10..11, 11..22, 22..32]),
            (0..16, vec![0..11, 11..16]),
        ]
    );
    let windowed = Case::new(&[0], &[10, 40, 14], Some(5), 16, 12);
    let (_, _, fetched) = windowed.run();
    assert_eq!(
        fetched,
        [
            (48..64, vec![44..54, 54..64]),
            (32..48, vec![28..33, 33..44, 44..48]),
            (16..32, vec![12..22, 22..32]),
            (0..16, vec![0..11, 11..16]),
        ]
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn any_documents_tiles_chunks_and_windows(
        lengths in prop::collection::vec(1_i64..30, 1..6),
        tile in 1_i64..40,
        chunk in 1_i64..40,
        window in prop::option::of(1_i64..30),
    ) {
        Case::new(&[0, 0, 1], &lengths, window, tile, chunk).check(AUTOGRAD);
    }
}
