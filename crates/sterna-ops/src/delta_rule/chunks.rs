//! How packed documents are cut into chunks, and runs of chunks, and how tokens are laid out in them.

use std::ops::Range;

use sterna_torch_sys::copies::upload;
use tch::{Device, Kind, Tensor};

use crate::accumulate_kind;
use crate::attention::Documents;

/// Tokens of a chunk.
pub(super) const CHUNK_LEN: i64 = 64;
/// Chunks that are computed at once.
const SEGMENT_CHUNKS: usize = 16;

/// Tokens of one document whose places in each other are solved for at once.
#[derive(Debug, Clone)]
pub(super) struct Chunk {
    tokens: Range<i64>,
    /// Whether its document begins with it.
    pub(super) is_first: bool,
}

/// A run of chunks.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) chunks: Vec<Chunk>,
    /// How chunks that are not full are filled up; `None` if all are full.
    padding: Option<Padding>,
}

/// Where tokens stand in chunks that are filled up.
#[derive(Debug)]
struct Padding {
    /// Of each place `[chunks * 64]`, the token that stands there, counted from the first of the run; any one where none does.
    token_of_place: Tensor,
    /// Of each token, its place.
    place_of_token: Tensor,
    /// Of each place, whether a token stands there, `[chunks, 1, 64]`.
    is_token: Tensor,
}

/// The runs of chunks of packed documents. A document that fits one run is in one, so that only every 1,024 tokens of a longer one a run
/// continues another.
pub(super) fn segments(documents: &Documents, device: Device) -> Vec<Segment> {
    let mut runs: Vec<Vec<Chunk>> = Vec::new();
    for document in documents.ranges() {
        let chunks: Vec<Chunk> = chunks_of(document).collect();
        match runs.last_mut() {
            Some(run) if run.len() + chunks.len() <= SEGMENT_CHUNKS => run.extend(chunks),
            _ => runs.extend(chunks.chunks(SEGMENT_CHUNKS).map(<[Chunk]>::to_vec)),
        }
    }
    let segment = |chunks: Vec<Chunk>| Segment { padding: Padding::new(&chunks, device), chunks };
    runs.into_iter().map(segment).collect()
}

/// How many of them do not begin a document.
pub(super) fn num_continuing(documents: &Documents) -> usize {
    let num_chunks = |document: &Range<i64>| chunks_of(document).count();
    let continuing = |document| num_chunks(document).div_ceil(SEGMENT_CHUNKS) - 1;
    documents.ranges().iter().map(continuing).sum()
}

/// Full chunks, and a last one with the rest.
fn chunks_of(document: &Range<i64>) -> impl Iterator<Item = Chunk> + use<> {
    let Range { start, end } = *document;
    (start..end).step_by(CHUNK_LEN as usize).map(move |first| Chunk {
        tokens: first..end.min(first + CHUNK_LEN),
        is_first: first == start,
    })
}

impl Padding {
    fn new(chunks: &[Chunk], device: Device) -> Option<Padding> {
        let is_full = |chunk: &Chunk| chunk.tokens.end - chunk.tokens.start == CHUNK_LEN;
        if chunks.iter().all(is_full) {
            return None;
        }
        let first = chunks.first()?.tokens.start;
        let (mut token_of_place, mut place_of_token, mut is_token) = (vec![], vec![], vec![]);
        for (chunk, start) in chunks.iter().zip((0..).step_by(CHUNK_LEN as usize)) {
            let len = chunk.tokens.end - chunk.tokens.start;
            place_of_token.extend(start..start + len);
            let token = |place: i64| chunk.tokens.start - first + place.min(len - 1);
            token_of_place.extend((0..CHUNK_LEN).map(token));
            is_token.extend((0..CHUNK_LEN).map(|place| place < len));
        }
        let is_token = upload(Tensor::from_slice(&is_token), device);
        Some(Padding {
            token_of_place: upload(Tensor::from_slice(&token_of_place), device),
            place_of_token: upload(Tensor::from_slice(&place_of_token), device),
            is_token: is_token.view([-1, 1, CHUNK_LEN]),
        })
    }
}

impl Segment {
    /// Whether its first chunk begins with the state of another run.
    pub(super) fn continues(&self) -> bool {
        self.chunks.first().is_some_and(|chunk| !chunk.is_first)
    }

    pub(super) fn num_chunks(&self) -> i64 {
        self.chunks.len() as i64
    }

    fn tokens(&self) -> (i64, i64) {
        let start = self.chunks.first().map_or(0, |chunk| chunk.tokens.start);
        (start, self.chunks.last().map_or(0, |chunk| chunk.tokens.end) - start)
    }

    /// The tokens of `x` `[s, heads, d]` as `[chunks, heads, 64, d]` in single precision or better. Where no token stands, there are
    /// copies of the chunk's last.
    pub(super) fn take(&self, x: &Tensor) -> Tensor {
        let (start, len) = self.tokens();
        let x = x.narrow(0, start, len);
        let x = match &self.padding {
            Some(padding) => x.index_select(0, &padding.token_of_place),
            None => x,
        };
        let size = x.size();
        let by_head = x.view([self.num_chunks(), CHUNK_LEN, size[1], size[2]]).transpose(1, 2);
        let taken = Tensor::empty(by_head.size(), (accumulate_kind(x.kind()), x.device()));
        taken.shallow_clone().copy_(&by_head);
        taken
    }

    /// The same of numbers `[s, heads]`, `[chunks, heads, 64]`; zeros where no token stands.
    pub(super) fn take_numbers(&self, x: &Tensor) -> Tensor {
        self.zero_between(self.take(&x.unsqueeze(2)).squeeze_dim(3))
    }

    /// `x` `[chunks, heads, 64]` with zeros where no token stands.
    fn zero_between(&self, x: Tensor) -> Tensor {
        match &self.padding {
            Some(padding) => x * &padding.is_token,
            None => x,
        }
    }

    /// [`Segment::take`] with zeros where no token stands.
    pub(super) fn take_or_zero(&self, x: &Tensor) -> Tensor {
        let taken = self.take(x);
        match &self.padding {
            Some(padding) => taken * padding.is_token.unsqueeze(3),
            None => taken,
        }
    }

    /// Writes `taken` `[chunks, heads, 64, d]` to the run's tokens of `x` `[s, heads, d]`, rounded to its dtype.
    pub(super) fn put(&self, taken: &Tensor, x: &Tensor) {
        let (start, len) = self.tokens();
        let by_token = taken.transpose(1, 2).flatten(0, 1);
        let by_token = match &self.padding {
            Some(padding) => by_token.index_select(0, &padding.place_of_token),
            None => by_token,
        };
        x.narrow(0, start, len).copy_(&by_token);
    }

    /// The same of numbers, `[chunks, heads, 64]` to `[s, heads]`.
    pub(super) fn put_numbers(&self, taken: &Tensor, x: &Tensor) {
        self.put(&taken.unsqueeze(3), &x.unsqueeze(2));
    }

    /// An index on the device.
    pub(super) fn index(map: &[usize], device: Device) -> Tensor {
        let map: Vec<i64> = map.iter().map(|head| *head as i64).collect();
        upload(Tensor::from_slice(&map).to_kind(Kind::Int64), device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(lengths: &[i64]) -> Vec<(Range<i64>, bool)> {
        let mut end = 0;
        let ranges = lengths.iter().map(|len| {
            end += len;
            end - len..end
        });
        let documents = Documents::new(ranges.collect());
        let segments = segments(&documents, Device::Cpu);
        assert_eq!(
            segments.iter().filter(|segment| segment.continues()).count(),
            num_continuing(&documents)
        );
        let chunks = segments.into_iter().flat_map(|segment| segment.chunks);
        chunks.map(|chunk| (chunk.tokens, chunk.is_first)).collect()
    }

    #[test]
    fn chunks_begin_anew_in_every_document() {
        let expected = [(0..1, true), (1..65, true), (65..66, false), (66..130, true)];
        assert_eq!(cut(&[1, 65, 64]), expected);
    }

    /// 2,049 tokens are 33 chunks: runs of 16, 16 and 1, which a short document joins; one of 17 chunks begins runs of its own.
    #[test]
    fn runs_have_sixteen_chunks() {
        let documents = Documents::new(vec![0..2049, 2049..2050, 2050..3075]);
        let of: Vec<_> = segments(&documents, Device::Cpu)
            .iter()
            .map(|segment| (segment.num_chunks(), segment.continues(), segment.tokens()))
            .collect();
        assert_eq!(
            of,
            [
                (16, false, (0, 1024)),
                (16, true, (1024, 1024)),
                (2, true, (2048, 2)),
                (16, false, (2050, 1024)),
                (1, true, (3074, 1)),
            ]
        );
    }
}
