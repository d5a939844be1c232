//! Times as people read and write them: RFC 3339, in UTC.

use std::time::{Duration, SystemTime};

use crate::cli::duration;

const DAY_S: i64 = 24 * 3600;
/// Days of 400 years, after which the calendar repeats itself.
const ERA: i64 = 146_097;
/// Days from 0000-03-01 to 1970-01-01. Years are counted from March on: the day that some have more is their last one.
const EPOCH: i64 = 719_468;

/// ms since 1970 by this machine's clock.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    ms(since.unwrap_or_default())
}

fn ms(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

/// `2026-11-28T19:03:11.042Z`
pub(crate) fn rfc3339(at_ms: u64) -> String {
    let s = i64::try_from(at_ms / 1000).unwrap_or(i64::MAX);
    let (days, of_day) = (s.div_euclid(DAY_S) + EPOCH, s.rem_euclid(DAY_S));
    let (era, day) = (days.div_euclid(ERA), days.rem_euclid(ERA));
    // Each fourth year has a day more, each hundredth has not, the last one of an era has.
    let year = (day - day / 1460 + day / 36_524 - day / (ERA - 1)) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    // Months from March on have 153 days in five.
    let month = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * month + 2) / 5 + 1;
    let (year, month) = match month < 10 {
        true => (era * 400 + year, month + 3),
        false => (era * 400 + year + 1, month - 9),
    };
    let (h, m, s) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!(
        "{year:04}-{month:02}-{of_month:02}T{h:02}:{m:02}:{s:02}.{:03}Z",
        at_ms % 1000
    )
}

/// `10m`: so long before `now_ms`; `2026-11-28`, `2026-11-28T19:03:11Z`, `2026-11-28T20:03:11.5+01:00`: then.
pub(crate) fn since(text: &str, now_ms: u64) -> Result<u64, String> {
    if text.contains('-') {
        return moment(text).ok_or_else(|| {
            format!("{text:?} is no moment since 1970; try: 2026-11-28T19:03:11Z (RFC 3339), or 10m for the last ten minutes")
        });
    }
    let ago = duration(text).map_err(|_| {
        format!("{text:?} is neither a time such as 10m or 2h nor a moment; try: 10m or 2026-11-28T19:03:11Z")
    })?;
    Ok(now_ms.saturating_sub(ms(ago)))
}

fn moment(text: &str) -> Option<u64> {
    let (date, time) = text.split_once(['T', 't', ' ']).unwrap_or((text, "00:00:00Z"));
    let mut date = date.splitn(3, '-');
    let mut next = |digits| number(date.next()?, digits);
    let (year, month, day) = (next(4)?, next(2)?, next(2)?);
    let days_of = [
        31,
        if leap(year) { 29 } else { 28 },
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ];
    let last = *days_of.get(usize::try_from(month).ok()?.checked_sub(1)?)?;
    if !(1..=last).contains(&day) {
        return None;
    }
    let (y, m) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = 365 * y + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + (153 * m + 2) / 5 + day - 1 - EPOCH;

    let zone = time.find(['Z', 'z', '+', '-'])?;
    let (clock, zone) = time.split_at(zone);
    let (clock, part) = clock.split_once('.').unwrap_or((clock, "0"));
    let mut clock = clock.splitn(3, ':');
    let mut next = |limit| number(clock.next()?, 2).filter(|n| *n < limit);
    // A leap second is the first of the next minute.
    let s = next(24)? * 3600 + next(60)? * 60 + next(61)?;
    let ms: i64 = match part.len() {
        1..=9 if part.bytes().all(|b| b.is_ascii_digit()) => format!("{part:0<3}").get(..3)?.parse().ok()?,
        _ => return None,
    };
    let behind = match zone {
        "Z" | "z" => 0,
        _ => {
            let (h, m) = zone.get(1..)?.split_once(':')?;
            let off = number(h, 2).filter(|h| *h < 24)? * 3600 + number(m, 2).filter(|m| *m < 60)? * 60;
            if zone.starts_with('-') { -off } else { off }
        }
    };
    u64::try_from((days * DAY_S + s - behind) * 1000 + ms).ok()
}

fn leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

/// So many digits.
fn number(text: &str, digits: usize) -> Option<i64> {
    let ok = text.len() == digits && text.bytes().all(|b| b.is_ascii_digit());
    ok.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        for (text, at_ms) in [
            ("1970-01-01T00:00:00.000Z", 0),
            ("2000-02-29T23:59:59.999Z", 951_868_799_999),
            ("2000-03-01T00:00:00.000Z", 951_868_800_000),
            ("2026-11-28T19:03:11.042Z", 1_795_892_591_042),
            ("2100-02-28T12:00:00.000Z", 4_107_499_200_000),
            ("2100-03-01T12:00:00.000Z", 4_107_585_600_000),
        ] {
            assert_eq!(rfc3339(at_ms), text);
            assert_eq!(since(text, 0), Ok(at_ms), "{text}");
        }
        for day in 0..80_000_u64 {
            let at_ms = day * 86_400_000 + 1;
            assert_eq!(since(&rfc3339(at_ms), 0), Ok(at_ms));
        }
        for (text, at_ms) in [
            ("2026-11-28", 1_795_824_000_000),
            ("2026-11-28T20:03:11.5+01:00", 1_795_892_591_500),
            ("2026-11-28 18:33:11-00:30", 1_795_892_591_000),
            ("1970-01-01T00:00:60Z", 60_000),
            ("10m", 400_000),
            ("1h", 0),
        ] {
            assert_eq!(since(text, 1_000_000), Ok(at_ms), "{text}");
        }
    }

    #[test]
    fn what_is_no_moment_says_so() {
        for bad in [
            "",
            "yesterday",
            "10 minutes",
            "2026-13-01",
            "2026-02-29",
            "2026-00-10",
            "2026-11-28T24:00:00Z",
            "2026-11-28T19:03:11",
            "2026-11-28T19:03Z",
            "2026-11-28T19:03:11.Z",
            "2026-11-28T19:03:11+25:00",
            "1969-12-31",
            "2026-1-1",
            "-1h",
        ] {
            let told = since(bad, 0).unwrap_err();
            assert!(told.contains("try:") && told.contains(&format!("{bad:?}")), "{told}");
        }
    }
}
