//! Dates and times as Python's `isoformat` prints them.

pub(super) const SECONDS_IN_DAY: i64 = 86_400;

const NANOSECONDS_IN_SECOND: i128 = 1_000_000_000;
const NANOSECONDS_IN_DAY: i128 = SECONDS_IN_DAY as i128 * NANOSECONDS_IN_SECOND;

/// `2026-11-30`, `days` after 1970-01-01; `None` outside Python's years 1 to 9999.
pub(super) fn date(days: i64) -> Option<String> {
    // Years start in March, so that the leap day is the last of a year; 400 years have 146,097 days.
    let days = days.checked_add(719_468)?;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (1..=9999).contains(&year).then(|| format!("{year:04}-{month:02}-{day:02}"))
}

/// `12:34:56`, with six or nine digits of the part of a second if there is one.
pub(super) fn time(nanoseconds: i128) -> String {
    let nanoseconds = nanoseconds.rem_euclid(NANOSECONDS_IN_DAY);
    let seconds = nanoseconds / NANOSECONDS_IN_SECOND;
    let rest = nanoseconds % NANOSECONDS_IN_SECOND;
    let whole = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    match rest {
        0 => whole,
        _ if rest % 1000 == 0 => format!("{whole}.{:06}", rest / 1000),
        _ => format!("{whole}.{rest:09}"),
    }
}

/// `2026-11-30T12:34:56+01:00`, `nanoseconds` after the start of 1970 in UTC.
///
/// A zone is an offset or a name. Names other than that of UTC need a table of all zones: their times are printed in UTC, which is the
/// same instant.
pub(super) fn timestamp(nanoseconds: i128, zone: Option<&str>) -> Option<String> {
    let minutes = zone.map(|zone| offset_minutes(zone).unwrap_or(0));
    let local = nanoseconds + i128::from(minutes.unwrap_or(0)) * 60 * NANOSECONDS_IN_SECOND;
    let days = i64::try_from(local.div_euclid(NANOSECONDS_IN_DAY)).ok()?;
    let suffix = minutes.map_or_else(String::new, |minutes| {
        let sign = if minutes < 0 { '-' } else { '+' };
        format!("{sign}{:02}:{:02}", minutes.abs() / 60, minutes.abs() % 60)
    });
    Some(format!("{}T{}{suffix}", date(days)?, time(local)))
}

/// Minutes of `+05:30`.
fn offset_minutes(zone: &str) -> Option<i32> {
    let (hours, minutes) = zone.get(1..)?.split_once(':')?;
    let is_number = |text: &str| text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(hours) || !is_number(minutes) {
        return None;
    }
    let minutes = hours.parse::<i32>().ok()? * 60 + minutes.parse::<i32>().ok()?;
    match zone.as_bytes()[0] {
        b'+' => Some(minutes),
        b'-' => Some(-minutes),
        _ => None,
    }
}
