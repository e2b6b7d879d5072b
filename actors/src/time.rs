//! Time, from one place: the two clocks of a node, and unix milliseconds as people read them.
//!
//! Both clocks follow a simulation: the monotonic one because it is the runtime's, the wall clock by `simulate_wall`.

/// RFC 3339 with milliseconds, UTC. The days are counted by Howard Hinnant's `civil_from_days`.
pub fn rfc3339(unix_ms: u64) -> String {
    let (days, ms) = ((unix_ms / 86_400_000) as i64, unix_ms % 86_400_000);
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (h, m, s) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    format!(
        "{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{:03}Z",
        ms % 1000
    )
}

/// Monotonic time as the runtime tells it, so that a paused or simulated clock is followed.
pub fn now() -> std::time::Instant {
    tokio::time::Instant::now().into_std()
}

/// The wall clock, unix ms; for people and for other machines, never for deciding.
pub fn unix_ms() -> u64 {
    #[cfg(feature = "testkit")]
    if let Some(clock) = SIMULATED.get() {
        return clock();
    }
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(feature = "testkit")]
thread_local! {
    static SIMULATED: std::cell::Cell<Option<fn() -> u64>> = const { std::cell::Cell::new(None) };
}

/// From now on this thread's wall clock is `clock`; `None` gives it back to the system.
#[cfg(feature = "testkit")]
pub fn simulate_wall(clock: Option<fn() -> u64>) {
    SIMULATED.set(clock);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments_are_written_as_everybody_does() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(951_782_400_123), "2000-02-29T00:00:00.123Z");
        assert_eq!(rfc3339(1_795_454_715_007), "2026-11-23T17:25:15.007Z");
    }
}
