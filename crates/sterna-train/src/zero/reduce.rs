//! Sums of gradients over ranks, piece by piece, so that what travels and what arrives cost a piece and not a buffer.
//!
//! A piece is waited for before the next one starts: this is for what nothing runs beside anyway, and for units so large that
//! their copies cost more than the time.

use sterna_comm::{Group, ReduceOp};
use tch::{Kind, Tensor};

use super::optimizer::pieces;
use crate::error::TrainError;

/// Elements of a buffer that travel at once.
pub(super) const PIECE_LEN: i64 = 1 << 22;

/// Calls `take(own, sum)` for each piece of this rank's shard of `whole`: the first element of the piece within the shard, and the
/// sum over ranks, in `kind`.
///
/// # Communication
///
/// One reduce-scatter for each piece. Collective.
pub(super) fn reduce_scatter_in_pieces(
    world: &Group,
    whole: &Tensor,
    kind: Kind,
    piece_len: i64,
    mut take: impl FnMut(i64, &Tensor) -> Result<(), TrainError>,
) -> Result<(), TrainError> {
    let num_ranks = world.size() as i64;
    let of_ranks = whole.view([num_ranks, -1]);
    for piece in pieces(of_ranks.size()[1], (piece_len / num_ranks).max(1)) {
        let len = piece.end - piece.start;
        let sent = of_ranks.narrow(1, piece.start, len).to_kind(kind).contiguous();
        let sum = Tensor::empty([len], (kind, whole.device()));
        world.reduce_scatter_tensor(&sum, &sent.view(-1), ReduceOp::Sum)?.wait()?;
        take(piece.start, &sum)?;
    }
    Ok(())
}

/// Replaces `whole` by its sum over ranks, which travels in `kind`.
///
/// # Communication
///
/// One all-reduce for each piece. Collective.
pub(super) fn all_reduce_in_pieces(
    world: &Group,
    whole: &Tensor,
    kind: Kind,
    piece_len: i64,
) -> Result<(), TrainError> {
    for piece in pieces(whole.size()[0], piece_len) {
        let mut piece = whole.narrow(0, piece.start, piece.end - piece.start);
        let sent = piece.to_kind(kind);
        world.all_reduce_(&sent, ReduceOp::Sum)?;
        if sent.kind() != piece.kind() {
            piece.copy_(&sent);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sterna_comm::{Comm, RankEnv};
    use sterna_testkit::{TestRank, spawn_ranks};
    use tch::Device;

    use super::*;

    #[test]
    fn sums_over_ranks_in_pieces_are_those_in_one() {
        spawn_ranks(3, |rank: &TestRank| {
            let comm =
                Comm::init(&RankEnv::from_env().unwrap(), 1, Duration::from_secs(30)).unwrap();
            let world = comm.world();
            let of_rank = |rank: i64| {
                // Whole numbers, whose sums bf16 holds.
                Tensor::arange(30, (Kind::Float, Device::Cpu)) * (rank + 1)
            };
            let expected = of_rank(0) + of_rank(1) + of_rank(2);
            let first = 10 * rank.rank as i64;
            for kind in [Kind::Float, Kind::BFloat16] {
                for piece_len in [1, 7, 9, 30, 100] {
                    let whole = of_rank(rank.rank as i64);
                    let own = Tensor::zeros([10], (Kind::Float, Device::Cpu));
                    reduce_scatter_in_pieces(world, &whole, kind, piece_len, |start, sum| {
                        own.narrow(0, start, sum.size()[0]).copy_(sum);
                        Ok(())
                    })
                    .unwrap();
                    assert_eq!(own, expected.narrow(0, first, 10), "{kind:?} {piece_len}");
                    assert_eq!(whole, of_rank(rank.rank as i64), "only read");
                    all_reduce_in_pieces(world, &whole, kind, piece_len).unwrap();
                    assert_eq!(whole, expected, "{kind:?} {piece_len}");
                }
            }
        });
    }
}
