//! Split expressions: `train`, `train[10:20]`, `train[:10%]`, `train[:33%](pct1_dropremainder)`, `a+b`, `all`.
//!
//! The grammar and the rounding are those of the datasets library (`arrow_reader.py`, `ReadInstruction`).

use std::ops::Range;

use crate::error::{Error, Result};

/// A parsed expression: the rows of its pieces, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitSpec {
    /// As typed.
    text: String,
    pieces: Vec<Piece>,
}

/// One split and the part of it that is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Name of the split.
    pub name: String,
    from: Option<i64>,
    to: Option<i64>,
    unit: Unit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Rows,
    /// Percents, rounded to the closest row.
    Percent,
    /// Percents of a hundredth of the rows, rounded down, so that all percents have the same size.
    WholePercent,
}

impl SplitSpec {
    /// Parses `text`.
    ///
    /// # Errors
    ///
    /// [`Error::BadSplit`] if it does not follow the grammar; [`Error::PercentOutOfRange`].
    pub fn parse(text: &str) -> Result<Self> {
        let bad = || Error::BadSplit { spec: text.to_owned() };
        let pieces = text
            .split('+')
            .map(|piece| parse_piece(piece.trim(), text))
            .collect::<Result<Vec<_>>>()?;
        let mut percent_units =
            pieces.iter().map(|piece| piece.unit).filter(|&unit| unit != Unit::Rows);
        let first = percent_units.next();
        if percent_units.any(|unit| Some(unit) != first) {
            return Err(bad());
        }
        Ok(Self { text: text.to_owned(), pieces })
    }

    /// The pieces, in order.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// How many rows of the split `name` are needed at most, if that can be said before they are counted.
    pub(super) fn max_rows(&self, name: &str) -> Option<usize> {
        let pieces = self.pieces.iter().filter(|piece| piece.name == name);
        let ends = pieces.map(|piece| match (piece.unit, piece.from.unwrap_or(0), piece.to) {
            (Unit::Rows, 0.., Some(to @ 0..)) => usize::try_from(to).ok(),
            _ => None,
        });
        ends.collect::<Option<Vec<_>>>()?.into_iter().max()
    }

    /// The rows that `piece` takes of a split of `rows` rows; empty if it ends before it starts.
    ///
    /// # Errors
    ///
    /// [`Error::TooFewForPercents`] for `pct1_dropremainder` on fewer than 100 rows.
    pub fn range(&self, piece: &Piece, rows: usize) -> Result<Range<usize>> {
        if piece.unit == Unit::WholePercent && rows < 100 {
            return Err(Error::TooFewForPercents { spec: self.text.clone(), rows });
        }
        let absolute = |bound: i64| -> i64 {
            match piece.unit {
                Unit::Rows => bound,
                // Python's round() goes to the even neighbour from the middle.
                Unit::Percent => (bound as f64 * rows as f64 / 100.0).round_ties_even() as i64,
                Unit::WholePercent => bound * (rows / 100) as i64,
            }
        };
        let clamp = |bound: i64| -> usize {
            let from_start = if bound < 0 { bound + rows as i64 } else { bound };
            usize::try_from(from_start).unwrap_or(0).min(rows)
        };
        let from = piece.from.map_or(0, |bound| clamp(absolute(bound)));
        let to = piece.to.map_or(rows, |bound| clamp(absolute(bound)));
        Ok(from..to.max(from))
    }
}

fn parse_piece(piece: &str, text: &str) -> Result<Piece> {
    let bad = || Error::BadSplit { spec: text.to_owned() };
    let (piece, rounding) = match piece.strip_suffix(')').and_then(|rest| rest.rsplit_once('(')) {
        Some((head, rounding)) => (head, Some(rounding)),
        None => (piece, None),
    };
    let (name, slice) = match piece.strip_suffix(']').and_then(|rest| rest.split_once('[')) {
        Some((name, slice)) => (name, Some(slice)),
        None => (piece, None),
    };
    if !is_split_name(name) {
        return Err(bad());
    }
    let (mut from, mut to, mut is_percent) = (None, None, false);
    if let Some(slice) = slice {
        let (low, high) = slice.split_once(':').ok_or_else(bad)?;
        for (bound, text) in [(&mut from, low), (&mut to, high)] {
            let digits = text.strip_suffix('%').unwrap_or(text);
            is_percent |= digits.len() != text.len();
            if !digits.is_empty() {
                *bound = Some(parse_int(digits).ok_or_else(bad)?);
            } else if !text.is_empty() {
                return Err(bad());
            }
        }
    }
    let unit = match (is_percent, rounding) {
        (false, None) => Unit::Rows,
        (true, None | Some("closest")) => Unit::Percent,
        (true, Some("pct1_dropremainder")) => Unit::WholePercent,
        _ => return Err(bad()),
    };
    if is_percent
        && let Some(found) = [from, to].into_iter().flatten().find(|bound| bound.abs() > 100)
    {
        return Err(Error::PercentOutOfRange { spec: text.to_owned(), found });
    }
    Ok(Piece { name: name.to_owned(), from, to, unit })
}

/// Word characters in runs joined by single dots.
fn is_split_name(name: &str) -> bool {
    name.split('.')
        .all(|word| !word.is_empty() && word.chars().all(|c| c.is_alphanumeric() || c == '_'))
}

/// A Python integer: digits with single underscores between them, and a sign.
fn parse_int(text: &str) -> Option<i64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let is_python_int =
        digits.split('_').all(|run| !run.is_empty() && run.bytes().all(|b| b.is_ascii_digit()));
    is_python_int.then(|| text.replace('_', "").parse().ok()).flatten()
}
