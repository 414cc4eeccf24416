//! Cutting a dimension into tiles that are processed one after the other.

use std::ops::Range;

/// Ranges that cover `0..len` in order, as even as possible and none longer than `tile_len`.
///
/// Even tiles, because a short last one wastes the work that prepares a matrix product: 4,097 tokens in tiles of at most 4,096 are
/// 2,049 and 2,048. An empty dimension has no tiles.
///
/// # Panics
///
/// If `len` is negative or `tile_len` is not positive.
pub fn tiles(
    len: i64,
    tile_len: i64,
) -> impl DoubleEndedIterator<Item = Range<i64>> + ExactSizeIterator {
    assert!(len >= 0, "the length to tile is {len}");
    assert!(tile_len > 0, "the tile length is {tile_len}");
    let num_tiles = (len as u64).div_ceil(tile_len as u64);
    // `len` and the tile count fit 63 bits, their product may not: the quotient and the remainder are spread instead.
    let (short, num_long) = (
        len.checked_div(num_tiles as i64).unwrap_or(0),
        len.checked_rem(num_tiles as i64).unwrap_or(0),
    );
    let start = move |tile_idx: i64| tile_idx * short + tile_idx.min(num_long);
    // A range of usize is what std lets us know the exact size of.
    (0..num_tiles as usize).map(move |tile_idx| start(tile_idx as i64)..start(tile_idx as i64 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_even_and_at_most_the_tile_length() {
        let of = |len, tile_len| tiles(len, tile_len).collect::<Vec<_>>();
        assert_eq!(of(4097, 4096), [0..2049, 2049..4097]);
        assert_eq!(of(7, 3), [0..3, 3..5, 5..7]);
        assert_eq!(of(0, 4), []);
    }

    #[test]
    fn a_length_beyond_32_bits_is_covered() {
        let len = (1_i64 << 33) + 1;
        let all = tiles(len, 1 << 32).collect::<Vec<_>>();
        assert_eq!(all.len(), 3);
        assert_eq!((all[0].start, all[2].end), (0, len));
        assert!(all.windows(2).all(|pair| pair[0].end == pair[1].start));
    }
}
