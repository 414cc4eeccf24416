//! Figures as people read them.

/// `16,384`.
pub fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A rate: `788`, `12.3`, `2.1e-3`.
pub fn rate(value: f64) -> String {
    match value {
        100.0.. => format!("{value:.0}"),
        1.0.. => format!("{value:.1}"),
        _ => format!("{value:.1e}"),
    }
}

/// The smallest and the median of some times; `None` of none.
pub fn shortest_and_median(mut times: Vec<f64>) -> Option<(f64, f64)> {
    times.sort_by(f64::total_cmp);
    let median = match times.len() {
        0 => return None,
        n if n % 2 == 1 => times[n / 2],
        n => f64::midpoint(times[n / 2 - 1], times[n / 2]),
    };
    Some((times[0], median))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped() {
        assert_eq!(thousands(7), "7");
        assert_eq!(thousands(512), "512");
        assert_eq!(thousands(16384), "16,384");
        assert_eq!(thousands(1_048_576), "1,048,576");
    }

    #[test]
    fn rates_have_digits_at_every_size() {
        assert_eq!([788.4, 12.34, 0.0021].map(rate), ["788", "12.3", "2.1e-3"]);
    }

    #[test]
    fn the_median_of_an_even_number_is_between_the_middle_two() {
        assert_eq!(shortest_and_median(vec![3.0, 1.0, 2.0]), Some((1.0, 2.0)));
        assert_eq!(shortest_and_median(vec![4.0, 1.0, 2.0, 8.0]), Some((1.0, 3.0)));
        assert_eq!(shortest_and_median(vec![]), None);
    }
}
