//! Numbers as people write them: `1_200_000`, `3.8M`, `64Ki`, `10^6`, `1e-5`, `10%`.
//!
//! The rules are the reference's, in its order, so a recipe means here what it means there. Two of them surprise: before a
//! suffix only one digit may follow the point (`1.5M` is a number, `1.25M` is not), and `b` is a billion, not a byte.

/// The number that `text` means, or `None` if it means none.
///
/// # Numerics
///
/// All arithmetic is in f64, as in the reference: an integer above 2^53 loses its last digits. `inf` and `nan` are numbers.
/// What overflows or divides by zero is none.
pub(crate) fn parse(text: &str) -> Option<f64> {
    let text = text.replace('_', "").to_lowercase();
    let text = text.trim();
    if let Some(percent) = text.strip_suffix('%') {
        return float(percent).map(|x| x / 100.0);
    }
    if let Some((base, exponent)) = two_short_numbers(text, '^') {
        return finite(base.abs().powf(exponent).copysign(if base < 0.0 { -1.0 } else { 1.0 }));
    }
    if let Some((base, exponent)) = two_short_numbers(text, 'e') {
        return finite(10f64.powf(exponent)).map(|power| base * power);
    }
    if let Some((mantissa, factor)) = suffix(text)
        && let Some(mantissa) = short_number(mantissa)
    {
        return Some(mantissa * factor);
    }
    float(text)
}

/// A number that Python's `float` accepts, blanks around it included.
fn float(text: &str) -> Option<f64> {
    text.trim().parse().ok()
}

fn finite(x: f64) -> Option<f64> {
    x.is_finite().then_some(x)
}

/// The pattern `-?\d+\.?\d?`: at most one digit after the point.
fn short_number(text: &str) -> Option<f64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let is_digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !is_digits(whole) || !is_digits(fraction) || fraction.len() > 1 {
        return None;
    }
    text.parse().ok()
}

fn two_short_numbers(text: &str, separator: char) -> Option<(f64, f64)> {
    let (left, right) = text.split_once(separator)?;
    Some((short_number(left)?, short_number(right)?))
}

/// Splits `3.8m` into `3.8` and a million.
fn suffix(text: &str) -> Option<(&str, f64)> {
    const SUFFIXES: [(&str, f64); 8] = [
        ("k", 1e3),
        ("m", 1e6),
        ("b", 1e9),
        ("t", 1e12),
        ("ki", 1_024.0),
        ("mi", 1_048_576.0),
        ("gi", 1_073_741_824.0),
        ("ti", 1_099_511_627_776.0),
    ];
    SUFFIXES.iter().find_map(|(name, factor)| Some((text.strip_suffix(name)?, *factor)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::parse;

    #[test]
    fn every_text_means_what_the_reference_says() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../tests/fixtures/human_numbers.json")).unwrap();
        let numbers = golden["numbers"].as_object().unwrap();
        assert!(numbers.len() > 500, "the fixture is whole");
        for (text, answer) in numbers {
            let theirs: Option<f64> = answer[0].as_str().map(|shown| shown.parse().unwrap());
            match (parse(text), theirs) {
                (Some(ours), Some(theirs)) if ours.is_nan() => assert!(theirs.is_nan(), "{text}"),
                (ours, theirs) => assert_eq!(ours, theirs, "`{text}`"),
            }
        }
    }

    proptest! {
        #[test]
        fn an_integer_with_or_without_underscores_is_itself(n in -(1i64 << 53)..(1i64 << 53), at in 1usize..18) {
            let mut text = n.to_string();
            prop_assert_eq!(parse(&text), Some(n as f64));
            if at < text.len() && !text[..at].ends_with('-') {
                text.insert(at, '_');
            }
            prop_assert_eq!(parse(&text), Some(n as f64));
        }

        #[test]
        fn any_float_that_rust_prints_reads_back(x in prop::num::f64::NORMAL) {
            prop_assert_eq!(parse(&x.to_string()), Some(x));
        }

        #[test]
        fn a_suffix_is_a_factor(whole in 0u32..100_000, digit in 0u8..10, which in 0usize..8) {
            let (name, factor) = [("K", 1e3), ("m", 1e6), ("B", 1e9), ("t", 1e12), ("Ki", 1024.0),
                ("mi", 1_048_576.0), ("GI", 1_073_741_824.0), ("Ti", 1_099_511_627_776.0)][which];
            let mantissa = format!("{whole}.{digit}");
            let expected = mantissa.parse::<f64>().unwrap() * factor;
            prop_assert_eq!(parse(&format!("{mantissa}{name}")), Some(expected));
            prop_assert_eq!(parse(&format!("-{mantissa}{name}")), Some(-expected));
            // A second digit after the point is an error, whatever it is.
            let two_digits = format!("{mantissa}5{name}");
            prop_assert_eq!(parse(&two_digits), None);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,12}") {
            let _ = parse(&text);
        }
    }
}
