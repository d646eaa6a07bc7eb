//! How far long work has come, in numbers and in words.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How far long work on a device has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Progress {
    /// Bytes that are done, those of earlier starts included.
    pub done: u64,
    /// Bytes in all, as far as is known now.
    pub total: u64,
    /// Bytes in a second since this start; 0 while that can't be told.
    pub rate: u64,
}

impl Progress {
    /// What there is to say after `done - begun` bytes in `elapsed`.
    pub fn new(begun: u64, done: u64, total: u64, elapsed: Duration) -> Self {
        let milliseconds = elapsed.as_millis().max(1);
        let rate = u128::from(done.saturating_sub(begun)) * 1000 / milliseconds;
        Self { done, total: total.max(done), rate: u64::try_from(rate).unwrap_or(u64::MAX) }
    }

    /// How much is done, from 0 to 100.
    pub fn percent(&self) -> u64 {
        let percent = u128::from(self.done) * 100 / u128::from(self.total.max(1));
        u64::try_from(percent).unwrap_or(100)
    }

    /// Seconds until it is done at this rate.
    pub fn seconds_left(&self) -> Option<u64> {
        self.total.saturating_sub(self.done).checked_div(self.rate)
    }
}

impl fmt::Display for Progress {
    /// `37 % of 1.8 TiB, 1.2 GiB/s, 14 min left`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} % of {}", self.percent(), size(self.total))?;
        match self.seconds_left() {
            Some(left) => write!(f, ", {}/s, {} left", size(self.rate), span(left)),
            None => Ok(()),
        }
    }
}

/// A size in bytes, in the largest binary unit that leaves a digit before the point.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let power = (bytes.max(1).ilog2() / 10).min(4);
    if power == 0 {
        return format!("{bytes} B");
    }
    let tenths = (u128::from(bytes) * 10) >> (10 * power);
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[power as usize])
}

/// A time in seconds, in the unit that a reader wants to know it in.
pub fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn in_words() {
        let progress = Progress::new(GIB, 3 * GIB, 8 * GIB, Duration::from_secs(4));
        assert_eq!(progress.to_string(), "37 % of 8.0 GiB, 512.0 MiB/s, 10 s left");
        let begun = Progress::new(GIB, GIB, 8 * GIB, Duration::ZERO);
        assert_eq!(begun.to_string(), "12 % of 8.0 GiB");
        // What was to be done can become less while it is under way.
        let done = Progress::new(0, 2 * GIB, GIB, Duration::from_secs(1));
        assert_eq!(done.to_string(), "100 % of 2.0 GiB, 2.0 GiB/s, 0 s left");
        let nothing = Progress::new(0, 0, 0, Duration::ZERO);
        assert_eq!(nothing.to_string(), "0 % of 0 B");
    }

    #[test]
    fn sizes() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(u64::MAX), "16777215.9 TiB");
    }
}
