//! Parses times in the notations of logs, as seconds since 1970 in UTC.

/// The day, month, year, hour and zone of the last parsed time, and the second at which that hour begins. The clock
/// keeps these values, because they are equal in most successive lines.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clock {
    hour: [u8; 14],
    zone: [u8; 5],
    begins: i64,
}

impl Clock {
    /// Parses a time such as `10/Oct/2000:13:55:36` in a zone such as `-0700`, or in UTC if there is no zone.
    pub(crate) fn read(&mut self, text: &[u8], zone: Option<&[u8]>) -> Option<i64> {
        let hour: &[u8; 14] = text.first_chunk()?;
        let zone: [u8; 5] = match zone {
            Some(zone) => *zone.first_chunk()?,
            None => *b"+0000",
        };
        if *hour != self.hour || zone != self.zone {
            let begins = begins(hour, zone)?;
            *self = Self { hour: *hour, zone, begins };
        }
        let [b':', m1, m2, b':', s1, s2] = text.get(14..20)? else { return None };
        let (minute, second) = (two(*m1, *m2)?, two(*s1, *s2)?);
        // In a leap second, the number of seconds is 60.
        (minute < 60 && second <= 60).then_some(self.begins + minute * 60 + second)
    }
}

/// Returns the second at which an hour such as `10/Oct/2000:13` begins.
fn begins(text: &[u8; 14], zone: [u8; 5]) -> Option<i64> {
    let [d1, d2, b'/', month @ .., b'/', y1, y2, y3, y4, b':', h1, h2] = text else { return None };
    let month = match month {
        b"Jan" => 1,
        b"Feb" => 2,
        b"Mar" => 3,
        b"Apr" => 4,
        b"May" => 5,
        b"Jun" => 6,
        b"Jul" => 7,
        b"Aug" => 8,
        b"Sep" => 9,
        b"Oct" => 10,
        b"Nov" => 11,
        b"Dec" => 12,
        _ => return None,
    };
    let year = two(*y1, *y2)? * 100 + two(*y3, *y4)?;
    let hour = two(*h1, *h2).filter(|&hour| hour < 24)?;
    Some(days(year, month, two(*d1, *d2)?)? * 86_400 + hour * 3_600 - offset(&zone)?)
}

/// Parses a time in nginx's format, such as `10/Oct/2000:13:55:36 -0700`.
#[must_use]
pub fn local(text: &[u8]) -> Option<i64> {
    Clock::default().read(text, Some(text.get(21..)?))
}

/// Parses a time in RFC 3339 format, such as `2000-10-10T13:55:36.123-07:00`. A blank may stand for the `T`.
#[must_use]
pub fn rfc3339(text: &[u8]) -> Option<i64> {
    let (moment, rest) = text.split_first_chunk::<19>()?;
    let [y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2, b'T' | b' ', h1, h2, b':', n1, n2, b':', s1, s2] = moment else {
        return None;
    };
    let rest = match rest {
        [b'.' | b',', fraction @ ..] => {
            let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
            fraction.get(digits..)?
        }
        rest => rest,
    };
    let offset = match rest {
        [] | b"Z" | b"z" => 0,
        [sign, h1, h2, b':', m1, m2] | [sign, h1, h2, m1, m2] => offset(&[*sign, *h1, *h2, *m1, *m2])?,
        _ => return None,
    };
    let year = two(*y1, *y2)? * 100 + two(*y3, *y4)?;
    let day = days(year, two(*m1, *m2)?, two(*d1, *d2)?)?;
    Some(day * 86_400 + two(*h1, *h2)? * 3_600 + two(*n1, *n2)? * 60 + two(*s1, *s2)? - offset)
}

/// The number of seconds by which a zone such as `-0700` is ahead of UTC.
fn offset(zone: &[u8; 5]) -> Option<i64> {
    let [sign, h1, h2, m1, m2] = zone;
    let seconds = two(*h1, *h2)? * 3_600 + two(*m1, *m2)? * 60;
    match sign {
        b'+' => Some(seconds),
        b'-' => Some(-seconds),
        _ => None,
    }
}

fn two(tens: u8, ones: u8) -> Option<i64> {
    (tens.is_ascii_digit() && ones.is_ascii_digit()).then(|| i64::from((tens - b'0') * 10 + (ones - b'0')))
}

/// The number of days since 1970 in the Gregorian calendar. In the calculation, a year begins in March, so that the
/// leap day is the last day of a year.
fn days(year: i64, month: i64, day: i64) -> Option<i64> {
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let of_year = (153 * month + 2) / 5 + day - 1;
    Some(year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + of_year - 719_468)
}

/// Formats a time in UTC, such as `2000-10-10 20:55:36`.
pub(crate) fn shown(at: i64) -> String {
    let (day, second) = (at.div_euclid(86_400), at.rem_euclid(86_400));
    let day = day + 719_468;
    let era = day.div_euclid(146_097);
    let of_era = day.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = year + year_of_era + era * 400;
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", second / 3_600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn when_a_time_is_formatted_then_it_can_be_parsed(at in 0i64..4_000_000_000) {
            prop_assert_eq!(rfc3339(shown(at).as_bytes()), Some(at));
        }
    }

    #[test]
    fn when_a_time_has_a_zone_then_it_is_converted_to_utc() {
        let mut clock = Clock::default();
        assert_eq!(clock.read(b"10/Oct/2000:13:55:36", Some(b"-0700")), Some(971_211_336));
        assert_eq!(clock.read(b"10/Oct/2000:13:55:37", Some(b"-0700")), Some(971_211_337));
        assert_eq!(clock.read(b"10/Oct/2000:20:55:36.123", None), Some(971_211_336));
        assert_eq!(clock.read(b"29/Feb/2024:00:00:00", Some(b"+0530")), Some(1_709_145_000));
        for text in
            ["10/Okt/2000:13:55:36", "32/Oct/2000:13:55:36", "10/Oct/2000:24:55:36", "10/Oct/2000:13:60:36", "10/Oct"]
        {
            assert_eq!(clock.read(text.as_bytes(), None), None, "{text}");
        }
        assert_eq!(clock.read(b"10/Oct/2000:13:55:36", Some(b"0700-")), None);
    }

    #[test]
    fn when_a_time_of_rfc_3339_has_a_fraction_or_zone_then_it_is_read() {
        for text in
            ["2000-10-10T20:55:36Z", "2000-10-10 20:55:36", "2000-10-10T13:55:36.5-07:00", "2000-10-10T13:55:36-0700"]
        {
            assert_eq!(rfc3339(text.as_bytes()), Some(971_211_336), "{text}");
        }
        for text in ["2000-10-10", "2000-13-10T20:55:36Z", "2000-10-10T20:55:36+7"] {
            assert_eq!(rfc3339(text.as_bytes()), None, "{text}");
        }
    }
}
