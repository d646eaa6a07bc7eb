//! When to try again after a transient failure, and when to stop trying.

use std::time::Duration;

/// The first wait; S3, KMS and the metadata service are mostly back within seconds.
const FIRST: Duration = Duration::from_secs(1);

/// The longest wait; somebody may be watching a boot.
const LONGEST: Duration = Duration::from_secs(30);

/// Waits that double from one second to thirty, each shortened by up to a quarter so that hosts which lost the same
/// service together do not come back together (AWS Builders' Library, "Timeouts, retries, and backoff with jitter").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    seed: u64,
    attempt: u32,
    deadline: Duration,
}

impl Schedule {
    /// A schedule that ends at `deadline`; `seed` differs from host to host.
    pub fn new(seed: u64, deadline: Duration) -> Self {
        Self { seed, attempt: 0, deadline }
    }

    /// How often it was asked: the number of failures so far.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// When the schedule ends, on the clock that `next` is asked with.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// How long to wait after another failure at `now`, or `None` when the next try would come after the deadline.
    pub fn next(&mut self, now: Duration) -> Option<Duration> {
        let full = FIRST.saturating_mul(1 << self.attempt.min(5)).min(LONGEST);
        self.attempt = self.attempt.saturating_add(1);
        let wait = full.checked_sub(full.mul_f64(0.25 * self.fraction())).unwrap();
        (now + wait < self.deadline).then_some(wait)
    }

    /// A number from 0 to 1 that seed and attempt give (`SplitMix64`, Steele et al. 2014).
    fn fraction(&self) -> f64 {
        let mut bits = self.seed.wrapping_add(u64::from(self.attempt).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^= bits >> 31;
        f64::from(u32::try_from(bits >> 32).expect("the upper half of 64 bits")) / f64::from(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn waits_grow_and_end() {
        let mut schedule = Schedule::new(7, Duration::from_mins(2));
        let mut now = Duration::ZERO;
        let mut waits = Vec::new();
        while let Some(wait) = schedule.next(now) {
            now += wait;
            waits.push(wait.as_secs_f64());
        }
        assert!((5..=9).contains(&waits.len()), "{waits:?}");
        assert!(waits[0] <= 1.0 && waits[4] > 11.0, "{waits:?}");
        assert!(now < Duration::from_mins(2));
    }

    proptest! {
        #[test]
        fn a_wait_is_between_three_quarters_and_the_whole(seed: u64, failures in 0u32..100) {
            let mut schedule = Schedule::new(seed, Duration::from_secs(1 << 20));
            for failure in 0..failures {
                let wait = schedule.next(Duration::ZERO).unwrap().as_secs_f64();
                let full = f64::from(1 << failure.min(5)).min(30.0);
                prop_assert!((full * 0.75 - 1e-6..=full + 1e-6).contains(&wait), "{wait} of {full}");
            }
        }

        #[test]
        fn hosts_spread(seed: u64) {
            let first = |seed| Schedule::new(seed, Duration::from_mins(1)).next(Duration::ZERO).unwrap();
            prop_assert_ne!(first(seed), first(seed.wrapping_add(1)));
        }
    }
}
