//! Sizes and durations as people write them.

use std::time::Duration;

/// Reads a size: a whole number with `KiB`, `MiB`, `GiB`, `TiB` (powers of 1024) or `KB`, `MB`, `GB`, `TB` (of 1000).
pub(super) fn parse_size(text: &str) -> Result<u64, &'static str> {
    const UNITS: [(&str, u64); 9] = [
        ("B", 1),
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
    ];
    parse(text, &UNITS).ok_or("write a whole number and a unit, such as \"2GiB\" or \"512MiB\"")
}

/// Reads a duration: a whole number with `s`, `min`, `h` or `d`, as in systemd.time(7).
pub(super) fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    const UNITS: [(&str, u64); 4] = [("s", 1), ("min", 60), ("h", 3_600), ("d", 86_400)];
    parse(text, &UNITS)
        .map(Duration::from_secs)
        .ok_or("write a whole number and one unit, such as \"90s\", \"10min\" or \"2h\"")
}

fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("2GiB"), Ok(2 << 30));
        assert_eq!(parse_size("2 GB"), Ok(2_000_000_000));
        for text in ["", "2", "GiB", "-1GiB", "1.5GiB", "2gib", "99999999999TiB", "2GiB "] {
            assert!(parse_size(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("10min"), Ok(Duration::from_mins(10)));
        for text in ["", "10", "10m", "1h 5min"] {
            assert!(parse_duration(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn never_panic(text in ".{0,30}") {
            let _ = parse_size(&text);
            let _ = parse_duration(&text);
        }
    }
}
