//! The exchange around attention: from all heads of a shard of the tokens to some heads of all tokens, and back.
//!
//! Outside attention a rank holds `s/p` tokens with all their heads. Attention needs every token of a head, so the ranks exchange them:
//! each sends, for every other rank, that rank's heads of its own tokens. All tensors that travel at the same time travel in one
//! all-to-all. Heads are split as evenly as they go ([`HeadSplit`]); a kv head that two ranks need is sent to both, and its
//! gradient comes back from both and is summed.
//!
//! A group of one rank copies nothing that one tile covers.
//!
//! # Source
//!
//! Jacobs et al. 2023, <https://arxiv.org/abs/2309.14509>.

use std::ops::Range;

use sterna_arch::HeadSplit;
use sterna_comm::Group;
use sterna_ops::accumulate_kind;
use sterna_torch_sys::memory::{self, MemoryKind};
use tch::{Device, Kind, Tensor};

use crate::error::ModelError;
use crate::stage::{Stage, num_bytes};

/// Who takes part in the exchange, and the shape of what travels.
#[derive(Clone, Copy)]
pub struct Exchange<'a> {
    /// The sequence-parallel group.
    pub group: &'a Group,
    /// The heads of each of its ranks.
    pub heads: &'a [HeadSplit],
    /// `b`, rows of the micro-batch.
    pub num_rows: i64,
    /// `s/p`, tokens of a row on this rank; the same on every rank.
    pub shard_len: i64,
    /// Dtype of the activations.
    pub kind: Kind,
    /// Where they are.
    pub device: Device,
}

/// A tensor that travels, `[tokens, heads, h]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Which heads it has.
    pub heads: Heads,
    /// `h`.
    pub head_dim: i64,
}

/// Which heads a tensor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heads {
    /// The query heads: `q`, `o` and their gradients.
    Query,
    /// The kv heads: `k`, `v` and their gradients.
    KeyValue,
}

impl Part {
    /// The heads of a rank.
    fn of(self, split: &HeadSplit) -> Range<i64> {
        let range = match self.heads {
            Heads::Query => &split.q,
            Heads::KeyValue => &split.kv,
        };
        range.start as i64..range.end as i64
    }

    fn count(self, split: &HeadSplit) -> i64 {
        let range = self.of(split);
        range.end - range.start
    }

    /// Values of a token on a rank.
    fn width(self, split: &HeadSplit) -> i64 {
        self.count(split) * self.head_dim
    }
}

impl Exchange<'_> {
    /// Tokens of this rank, `b * s/p`.
    fn num_tokens(&self) -> i64 {
        self.num_rows * self.shard_len
    }

    fn own_heads(&self) -> &HeadSplit {
        &self.heads[self.group.rank()]
    }

    fn empty(&self, size: &[i64]) -> Tensor {
        Tensor::empty(size, (self.kind, self.device))
    }

    /// Values of a token that travel to or from the rank of `split` when `parts` do.
    fn width(parts: &[Part], split: &HeadSplit) -> i64 {
        parts.iter().map(|part| part.width(split)).sum()
    }

    /// Elements that this rank sends for each rank, if its tokens leave: `[b * s/p, width of that rank]` each.
    fn token_splits(&self, parts: &[Part]) -> Vec<i64> {
        self.heads.iter().map(|split| self.num_tokens() * Self::width(parts, split)).collect()
    }

    /// Elements that this rank sends for each rank, if its heads leave: `[b * s/p, own width]` each.
    fn head_splits(&self, parts: &[Part]) -> Vec<i64> {
        vec![self.num_tokens() * Self::width(parts, self.own_heads()); self.heads.len()]
    }

    /// `[p, b * s/p, w]` as `[b * s, w]`: the tokens of each row in order. Shares memory if there is one row.
    fn join_tokens(&self, x: &Tensor, width: i64) -> Tensor {
        let p = self.heads.len() as i64;
        let x = x.view([p, self.num_rows, self.shard_len, width]);
        x.transpose(0, 1).reshape([self.num_rows * p * self.shard_len, width])
    }

    /// The inverse of [`Exchange::join_tokens`], as a view `[p, b, s/p, w]`.
    fn part_tokens(&self, x: &Tensor, width: i64) -> Tensor {
        let p = self.heads.len() as i64;
        x.view([self.num_rows, p, self.shard_len, width]).transpose(0, 1)
    }

    /// The heads of `part` in messages `[tokens, width]` for or from the rank of `split`, `[tokens, heads, h]`, sharing memory.
    fn part_of(message: &Tensor, parts: &[Part], part_idx: usize, split: &HeadSplit) -> Tensor {
        let (part, offset) = (parts[part_idx], Self::width(&parts[..part_idx], split));
        let of_part = message.narrow(1, offset, part.width(split));
        of_part.unflatten(1, [part.count(split), part.head_dim])
    }
}

/// Collects tiles of tensors that hold all heads of this rank's tokens, and trades them for its heads of all tokens.
pub struct SeqToHead<'a> {
    exchange: Exchange<'a>,
    parts: Vec<Part>,
    collected: Collected,
}

/// Tensors on their way out.
#[derive(Debug)]
enum Collected {
    /// A group of one rank: each tensor as it is, `[b * s, n, h]`, or nothing yet.
    Local(Vec<Option<Tensor>>),
    /// One message for each rank, `[b * s/p, width of that rank]`, in one flat buffer.
    Messages { flat: Tensor, views: Vec<Tensor> },
}

impl<'a> SeqToHead<'a> {
    /// Prepares to collect tensors with these heads.
    pub fn new(exchange: Exchange<'a>, parts: &[Part]) -> SeqToHead<'a> {
        let collected = if exchange.heads.len() == 1 {
            Collected::Local(parts.iter().map(|_| None).collect())
        } else {
            let splits = exchange.token_splits(parts);
            let _memory = memory::scope(MemoryKind::Communication);
            let flat = exchange.empty(&[splits.iter().sum()]);
            let views = flat
                .split_with_sizes(&splits[..], 0)
                .iter()
                .zip(exchange.heads)
                .map(|(message, split)| {
                    message.view([exchange.num_tokens(), Exchange::width(parts, split)])
                })
                .collect();
            Collected::Messages { flat, views }
        };
        SeqToHead { exchange, parts: parts.to_vec(), collected }
    }

    /// Puts in one tile of tensor `part_idx`, whose first token is `start`.
    ///
    /// # Shapes
    ///
    /// `x` `[tile, n, h]` or `[tile, k, h]`, with the heads of that part.
    pub fn put(&mut self, part_idx: usize, start: i64, x: &Tensor) {
        let len = x.size()[0];
        match &mut self.collected {
            // What one tile covers is passed on as it is.
            Collected::Local(tensors) if len == self.exchange.num_tokens() => {
                memory::retag(x, MemoryKind::Attention);
                tensors[part_idx] = Some(x.shallow_clone());
            }
            Collected::Local(tensors) => {
                let (exchange, size) = (&self.exchange, x.size());
                let _memory = memory::scope(MemoryKind::Attention);
                tensors[part_idx]
                    .get_or_insert_with(|| {
                        exchange.empty(&[exchange.num_tokens(), size[1], size[2]])
                    })
                    .narrow(0, start, len)
                    .copy_(x);
            }
            Collected::Messages { views, .. } => {
                for (message, split) in views.iter().zip(self.exchange.heads) {
                    let heads = self.parts[part_idx].of(split);
                    let x = x.narrow(1, heads.start, heads.end - heads.start);
                    let of_tile = message.narrow(0, start, len);
                    Exchange::part_of(&of_tile, &self.parts, part_idx, split).copy_(&x);
                }
            }
        }
    }

    /// Trades. Returns the tensors in the order of the parts, each with this rank's heads of all tokens.
    ///
    /// # Shapes
    ///
    /// Returns `[b * s, own heads, h]` each, with any strides whose last is 1.
    ///
    /// # Communication
    ///
    /// One all-to-all over the sp axis. Collective: every rank of the axis must call it, in the same order.
    ///
    /// # Errors
    ///
    /// [`ModelError::Comm`] if a peer fails or never arrives.
    ///
    /// # Panics
    ///
    /// If a tensor was not put in.
    pub fn all_to_all(self) -> Result<Vec<Tensor>, ModelError> {
        let SeqToHead { exchange, parts, collected } = self;
        let flat = match collected {
            Collected::Local(tensors) => {
                return Ok(tensors
                    .into_iter()
                    .map(|x| x.expect("every part has been put in"))
                    .collect());
            }
            Collected::Messages { flat, views } => {
                drop(views);
                flat
            }
        };
        let _stage = Stage::AllToAll.enter_with(None, num_bytes(&flat));
        let (in_splits, out_splits) = (exchange.token_splits(&parts), exchange.head_splits(&parts));
        let received = exchange.empty(&[out_splits.iter().sum()]);
        exchange.group.all_to_all_single(&received, &flat, &out_splits, &in_splits)?.wait()?;
        // The messages are on their way no longer; attention comes next and needs the room.
        drop(flat);
        let own = exchange.own_heads();
        let joined = exchange.join_tokens(&received, Exchange::width(&parts, own));
        memory::retag(&joined, MemoryKind::Attention);
        let of_part = |part_idx| Exchange::part_of(&joined, &parts, part_idx, own);
        Ok((0..parts.len()).map(of_part).collect())
    }
}

/// Tensors that have come back: all heads of this rank's tokens.
pub struct HeadToSeq<'a> {
    exchange: Exchange<'a>,
    parts: Vec<Part>,
    returned: Returned,
}

/// Tensors that have come back, as they arrived.
#[derive(Debug)]
enum Returned {
    /// A group of one rank: each tensor as it was, `[b * s, n, h]`.
    Local(Vec<Tensor>),
    /// One message from each rank, `[b * s/p, width of that rank]`.
    Messages(Vec<Tensor>),
}

impl<'a> HeadToSeq<'a> {
    /// Trades tensors that hold this rank's heads of all tokens for all heads of its own tokens.
    ///
    /// # Shapes
    ///
    /// `tensors` `[b * s, own heads, h]` each, contiguous, with the heads that their part says.
    ///
    /// # Communication
    ///
    /// One all-to-all over the sp axis. Collective: every rank of the axis must call it, in the same order.
    ///
    /// # Memory
    ///
    /// The tensors, one copy of them unless there is one tensor and one row, and what arrives; the first two are freed before
    /// return.
    ///
    /// # Errors
    ///
    /// [`ModelError::Comm`] if a peer fails or never arrives.
    pub fn all_to_all(
        exchange: Exchange<'a>,
        tensors: Vec<(Part, Tensor)>,
    ) -> Result<HeadToSeq<'a>, ModelError> {
        let (parts, tensors): (Vec<Part>, Vec<Tensor>) = tensors.into_iter().unzip();
        if exchange.heads.len() == 1 {
            return Ok(HeadToSeq { exchange, parts, returned: Returned::Local(tensors) });
        }
        let num_bytes = tensors.iter().map(num_bytes).sum();
        let _stage = Stage::AllToAll.enter_with(None, num_bytes);
        let own = exchange.own_heads();
        let parted: Vec<Tensor> = parts
            .iter()
            .zip(&tensors)
            .map(|(part, x)| exchange.part_tokens(x, part.width(own)))
            .collect();
        // Along the heads; for one part and one row this is a view of the tensor itself.
        let flat =
            if let [single] = &parted[..] { single.contiguous() } else { Tensor::cat(&parted, 3) }
                .view(-1);
        drop((parted, tensors));
        let (in_splits, out_splits) = (exchange.head_splits(&parts), exchange.token_splits(&parts));
        let received = exchange.empty(&[out_splits.iter().sum()]);
        exchange.group.all_to_all_single(&received, &flat, &out_splits, &in_splits)?.wait()?;
        let messages = received
            .split_with_sizes(&out_splits[..], 0)
            .iter()
            .zip(exchange.heads)
            .map(|(message, split)| {
                message.view([exchange.num_tokens(), Exchange::width(&parts, split)])
            })
            .collect();
        Ok(HeadToSeq { exchange, parts, returned: Returned::Messages(messages) })
    }

    /// Tokens `range` of tensor `part_idx` with all its heads.
    ///
    /// # Shapes
    ///
    /// Returns `[range, n, h]` or `[range, k, h]`.
    ///
    /// # Numerics
    ///
    /// A kv head that came back from several ranks is summed in single precision (double for double).
    pub fn tile(&self, part_idx: usize, range: &Range<i64>) -> Tensor {
        let (start, len) = (range.start, range.end - range.start);
        let messages = match &self.returned {
            Returned::Local(tensors) => return tensors[part_idx].narrow(0, start, len),
            Returned::Messages(messages) => messages,
        };
        let part = self.parts[part_idx];
        let pieces = messages.iter().zip(self.exchange.heads).map(|(message, split)| {
            let of_tile = message.narrow(0, start, len);
            (part.of(split), Exchange::part_of(&of_tile, &self.parts, part_idx, split))
        });
        match part.heads {
            // Ranks have runs of query heads that follow each other.
            Heads::Query => Tensor::cat(&pieces.map(|(_, piece)| piece).collect::<Vec<_>>(), 1),
            Heads::KeyValue => {
                let num_heads = self.exchange.heads.last().map_or(0, |split| split.kv.end) as i64;
                let sum = Tensor::zeros(
                    [len, num_heads, part.head_dim],
                    (accumulate_kind(self.exchange.kind), self.exchange.device),
                );
                for (heads, piece) in pieces {
                    let _ = sum.narrow(1, heads.start, heads.end - heads.start).g_add_(&piece);
                }
                sum.to_kind(self.exchange.kind)
            }
        }
    }
}
