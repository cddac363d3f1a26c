//! Formats numbers so that people can read them easily.

/// Formats a number with a meaningful number of digits, and with separators between thousands.
#[must_use]
pub fn shown(value: f64) -> String {
    let digits = match value.abs() {
        value if value.fract() == 0.0 => 0,
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    if value.is_nan() {
        return "?".to_owned();
    }
    let text = format!("{value:.digits$}");
    let (sign, text) = text.strip_prefix('-').map_or(("", text.as_str()), |text| ("-", text));
    let (whole, fraction) =
        text.split_once('.').map_or((text, String::new()), |(whole, rest)| (whole, format!(".{rest}")));
    format!("{sign}{}{fraction}", thousands(whole))
}

fn thousands(whole: &str) -> String {
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn when_a_number_is_written_then_its_digits_are_meaningful() {
        let all = [0.0, 4.0, 0.1234, 9.87, 33.456, -33.456, 123.4, 1234.6, 1_234_567.0, f64::NAN].map(shown);
        assert_eq!(all, ["0", "4", "0.12", "9.87", "33.5", "-33.5", "123", "1,235", "1,234,567", "?"]);
    }
}
