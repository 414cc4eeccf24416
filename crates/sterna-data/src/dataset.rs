//! Samples in training order, read from the cache when they are needed.

use std::ops::Range;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use sterna_hf::hex;

use crate::{
    cache::TokenStore,
    collate::IGNORE_INDEX,
    error::Result,
    label_mask::Tokens,
    pack::{Packs, Slice},
};

/// One sample, or one pack of samples, without padding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Token ids, `[s]`.
    pub input_ids: Vec<u32>,
    /// Labels at the position of their own token, [`IGNORE_INDEX`] where nothing is trained, `[s]`.
    pub labels: Vec<i32>,
    /// Positions, restarting at each sample of a pack unless they were fused, `[s]`.
    pub position_ids: Vec<u32>,
    /// Tokens of each sample in it.
    pub seqlens: Vec<usize>,
}

/// The tokens of several sources, one after the other.
#[derive(Debug)]
pub(crate) struct Corpus {
    stores: Vec<TokenStore>,
    /// First sample of each store.
    starts: Vec<usize>,
    /// What each sample is a piece of; `None` if all are whole.
    pieces: Option<Vec<Piece>>,
    /// Tokens of each piece.
    lengths: Vec<u32>,
    /// Consecutive pieces that are one sample to those that shuffle and pack: the two of a pair.
    per_sample: usize,
    /// Whether the first token of a piece keeps its label.
    labels_starts: bool,
}

/// A part of what was tokenized as one sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    /// Which one, in the order of the sources.
    of: u32,
    /// Its first token.
    start: u32,
}

impl Corpus {
    /// `per_sample` of what was tokenized are one sample.
    pub(crate) fn new(stores: Vec<TokenStore>, per_sample: usize) -> Self {
        let mut lengths = Vec::new();
        let mut starts = Vec::with_capacity(stores.len());
        for store in &stores {
            starts.push(lengths.len());
            lengths.extend_from_slice(store.lengths());
        }
        Self { stores, starts, pieces: None, lengths, per_sample, labels_starts: false }
    }

    /// With the first `max_length` tokens of samples that are longer, and if `keeps_rest` with the tokens behind them as further
    /// samples of at most as many. Pieces without a label are left out.
    ///
    /// # Errors
    ///
    /// [`crate::Error::CacheChanged`] if the cached tokens can no longer be read.
    pub(crate) fn cut(self, max_length: usize, keeps_rest: bool) -> Result<Self> {
        // No sample is longer than what fits.
        let max_length = u32::try_from(max_length).unwrap_or(u32::MAX);
        let (mut pieces, mut lengths) = (Vec::new(), Vec::new());
        for (of, &len) in self.lengths.iter().enumerate() {
            let of = of as u32;
            if len <= max_length {
                pieces.push(Piece { of, start: 0 });
                lengths.push(len);
                continue;
            }
            let Tokens { is_label, .. } = self.read(of)?;
            let starts = (0..len).step_by(max_length as usize);
            for start in starts.take(if keeps_rest { usize::MAX } else { 1 }) {
                let piece_len = max_length.min(len - start);
                // The first token of a piece has nothing before it.
                let labels = &is_label[start as usize + 1..(start + piece_len) as usize];
                if labels.contains(&true) {
                    pieces.push(Piece { of, start });
                    lengths.push(piece_len);
                }
            }
        }
        Ok(Self { pieces: Some(pieces), lengths, ..self })
    }

    /// These pieces of what was tokenized as samples, in this order. `labels_starts` leaves the label of a piece's first token.
    pub(crate) fn sliced<'a>(
        self,
        slices: impl Iterator<Item = &'a Slice>,
        labels_starts: bool,
    ) -> Self {
        let piece = |slice: &Slice| (Piece { of: slice.sample, start: slice.start }, slice.len);
        let (pieces, lengths) = slices.map(piece).unzip();
        Self { pieces: Some(pieces), lengths, labels_starts, ..self }
    }

    /// Samples, pairs counted once.
    pub(crate) fn num_samples(&self) -> usize {
        self.lengths.len() / self.per_sample
    }

    /// Tokens of each sample, of a pair in all.
    pub(crate) fn lens(&self) -> Vec<u32> {
        self.lengths.chunks_exact(self.per_sample).map(|lens| lens.iter().sum()).collect()
    }

    /// Tokens of a sample, of a pair in all.
    pub(crate) fn len_of(&self, sample: u32) -> u32 {
        self.lengths[self.pieces_of(sample)].iter().sum()
    }

    /// Tokens of a sample, of the longer one of a pair.
    pub(crate) fn longest_of(&self, sample: u32) -> u32 {
        self.lengths[self.pieces_of(sample)].iter().max().copied().unwrap_or(0)
    }

    fn pieces_of(&self, sample: u32) -> Range<usize> {
        let start = sample as usize * self.per_sample;
        start..start + self.per_sample
    }

    /// Tokens of each of what was tokenized, cut or not.
    pub(crate) fn whole_lengths(&self) -> impl Iterator<Item = u32> {
        self.stores.iter().flat_map(|store| store.lengths().iter().copied())
    }

    /// How many of what was tokenized are in no sample.
    pub(crate) fn num_cut_away(&self) -> usize {
        self.pieces.as_ref().map_or(0, |pieces| {
            self.whole_lengths().count() - pieces.chunk_by(|a, b| a.of == b.of).count()
        })
    }

    /// The samples of source `index`.
    pub(crate) fn samples_of(&self, index: usize) -> Range<u32> {
        let place = |whole: usize| match &self.pieces {
            None => whole,
            Some(pieces) => pieces.partition_point(|piece| (piece.of as usize) < whole),
        };
        let end = self.starts.get(index + 1).map_or(self.lengths.len(), |&start| place(start));
        let per_sample = self.per_sample;
        (place(self.starts[index]) / per_sample) as u32..(end / per_sample) as u32
    }

    fn read(&self, piece: u32) -> Result<Tokens> {
        let Piece { of, start } = self.piece(piece);
        let store = self.store_of(piece);
        let Tokens { mut ids, mut is_label } =
            self.stores[store].read(of as usize - self.starts[store])?;
        let (start, len) = (start as usize, self.lengths[piece as usize] as usize);
        if len < ids.len() {
            ids = ids[start..start + len].to_vec();
            is_label = is_label[start..start + len].to_vec();
        }
        if start > 0 && !self.labels_starts {
            is_label[0] = false;
        }
        Ok(Tokens { ids, is_label })
    }

    fn piece(&self, piece: u32) -> Piece {
        match &self.pieces {
            None => Piece { of: piece, start: 0 },
            Some(pieces) => pieces[piece as usize],
        }
    }

    /// The source of a piece.
    fn store_of(&self, piece: u32) -> usize {
        let whole = self.piece(piece).of as usize;
        self.starts.partition_point(|&start| start <= whole) - 1
    }
}

/// Samples, or packs of samples, in the order that the sampler indexes.
#[derive(Clone, Debug)]
pub struct Dataset {
    corpus: Arc<Corpus>,
    packs: Arc<Packs>,
    /// Which pack stands at each place; the same one may stand at several.
    order: Vec<u32>,
}

impl Dataset {
    pub(crate) fn new(corpus: Arc<Corpus>, packs: Packs) -> Self {
        let order = (0..packs.len() as u32).collect();
        Self { corpus, packs: Arc::new(packs), order }
    }

    /// The same samples at other places: place `i` of the result is place `places[i]` of this one.
    pub(crate) fn select(&self, places: impl IntoIterator<Item = usize>) -> Self {
        let order = places.into_iter().map(|place| self.order[place]).collect();
        Self { corpus: Arc::clone(&self.corpus), packs: Arc::clone(&self.packs), order }
    }

    /// Number of samples, or packs, counted as often as they are repeated.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether there is nothing to train on.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Tokens of sample `index`, without padding.
    pub fn sample_len(&self, index: usize) -> usize {
        self.members(index).map(|piece| self.corpus.lengths[piece as usize] as usize).sum()
    }

    /// Number of sources.
    pub fn num_sources(&self) -> usize {
        self.corpus.stores.len()
    }

    /// Which of the sources each sample of sample `index` comes from.
    pub fn sources(&self, index: usize) -> impl Iterator<Item = usize> {
        self.members(index).map(|piece| self.corpus.store_of(piece))
    }

    /// Reads sample `index`.
    ///
    /// # Errors
    ///
    /// [`crate::Error::CacheChanged`] if the cached tokens can no longer be read.
    ///
    /// # Panics
    ///
    /// If `index` is not below [`Self::len`].
    pub fn sample(&self, index: usize) -> Result<Sample> {
        let len = self.sample_len(index);
        let mut sample = Sample {
            input_ids: Vec::with_capacity(len),
            labels: Vec::with_capacity(len),
            position_ids: Vec::with_capacity(len),
            seqlens: Vec::new(),
        };
        for piece in self.members(index) {
            let Tokens { ids, is_label } = self.corpus.read(piece)?;
            sample.seqlens.push(ids.len());
            sample.position_ids.extend(0..ids.len() as u32);
            let label = |(&id, is_label)| if is_label { id as i32 } else { IGNORE_INDEX as i32 };
            sample.labels.extend(ids.iter().zip(is_label).map(label));
            sample.input_ids.extend(ids);
        }
        if self.packs.is_fused(self.order[index] as usize) {
            sample.position_ids = (0..len as u32).collect();
        }
        Ok(sample)
    }

    /// SHA-256 of every token, every label and the order of the samples: equal exactly when two data sets give the same sequences.
    pub fn fingerprint(&self) -> String {
        let mut hasher = Sha256::new();
        for hash in self.corpus.stores.iter().flat_map(TokenStore::hashes) {
            hasher.update(hash);
        }
        for (piece, len) in self.corpus.pieces.iter().flatten().zip(&self.corpus.lengths) {
            for number in [piece.of, piece.start, *len] {
                hasher.update(number.to_le_bytes());
            }
        }
        for (index, pack) in self.order.iter().enumerate() {
            let members: Vec<u32> = self.members(index).collect();
            hasher.update((members.len() as u64).to_le_bytes());
            for member in members {
                hasher.update(member.to_le_bytes());
            }
            hasher.update([u8::from(self.packs.is_fused(*pack as usize))]);
        }
        hex(&hasher.finalize())
    }

    /// The pieces that sample `index` is made of.
    fn members(&self, index: usize) -> impl Iterator<Item = u32> {
        let samples = self.packs.members(self.order[index] as usize).iter();
        samples.flat_map(|&sample| self.corpus.pieces_of(sample)).map(|piece| piece as u32)
    }
}
