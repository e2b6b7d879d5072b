//! ▶ Runs seeds in slices on several threads, and keeps the ledger. The shell around [`super::slices`].
//!
//! ```text
//! SIM_FROM      the first seed                    SIM_SLICE     seeds per slice, 500
//! SIM_SEEDS     how many                          SIM_LEDGER    the file that slices are appended to; those in it are skipped
//! SIM_THREADS   threads, 2                        SIM_SECONDS   the run fails when it has not ended by then
//! ```

use std::any::Any;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::coverage::Tally;
use super::slices::{self, Line, Slice, Subject};

/// So many seeds that fail are enough to look at.
const ENOUGH_FAILURES: usize = 5;

/// Plays each seed twice.
///
/// # Panics
/// When its transcript is another the second time, with the lines around the first difference.
pub fn demand_same_again(seeds: &[u64], play: impl Fn(u64) -> String) {
    for &seed in seeds {
        let (first, second) = (play(seed), play(seed));
        let differs = first.lines().zip(second.lines()).position(|(a, b)| a != b);
        if let Some(line) = differs {
            let around = |text: &str| {
                let lines = text.lines().skip(line.saturating_sub(3)).take(6);
                lines.collect::<Vec<_>>().join("\n")
            };
            let (first, second) = (around(&first), around(&second));
            panic!("seed {seed}, line {line}:\n{first}\n--- and again:\n{second}");
        }
        assert_eq!(first.len(), second.len(), "seed {seed}");
        assert!(first.lines().count() > 50, "seed {seed} tells too little");
    }
}

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Course {
    /// Which simulation.
    pub tier: &'static str,
    /// The first seed.
    pub first: u64,
    /// How many seeds; all of them are run.
    pub seeds: u64,
    /// Seeds per slice.
    pub slice: u64,
    /// Threads.
    pub threads: u64,
    /// Where finished slices are written and read.
    pub ledger: Option<PathBuf>,
    /// A safety net: the run has failed when it has not ended by then.
    pub within: Duration,
}

/// One seed's run.
pub struct Ran {
    /// What it adds to the sum.
    pub tally: Tally,
    /// Why it failed and how to replay it, for people.
    pub failure: Option<String>,
}

/// What came of a course.
pub struct Report {
    /// All that ran here.
    pub sum: Tally,
    /// Failures, by seed.
    pub failed: Vec<(u64, String)>,
    /// Simulated time to the time of one core.
    pub ratio: f64,
    /// Why not every seed was run, if so.
    pub cut_short: Option<String>,
}

/// A number from the environment.
///
/// # Panics
/// When it is none: a run that was asked for wrongly must not look well.
pub fn number(key: &str) -> Option<u64> {
    let value = std::env::var(key).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{key} must be a number, not {value:?}")),
    )
}

/// The ledger that the environment names.
pub fn ledger_path() -> Option<PathBuf> {
    std::env::var_os("SIM_LEDGER").map(PathBuf::from)
}

impl Course {
    /// So many seeds by default, within so long; the environment may say otherwise. Who says how many has all the time.
    pub fn from_env(tier: &'static str, seeds: u64, within: Duration) -> Self {
        let asked = number("SIM_SEEDS");
        let within = if asked.is_some() {
            Duration::MAX
        } else {
            within
        };
        Self {
            tier,
            first: number("SIM_FROM").unwrap_or(1),
            seeds: asked.unwrap_or(seeds),
            slice: number("SIM_SLICE").unwrap_or(500),
            threads: number("SIM_THREADS").unwrap_or(2).max(1),
            ledger: ledger_path(),
            within: number("SIM_SECONDS").map_or(within, Duration::from_secs),
        }
    }

    /// Runs what the ledger does not have yet, and says how it went.
    ///
    /// # Panics
    /// The ledger cannot be read or written.
    pub fn run(&self, one: impl Fn(u64) -> Ran + Sync) -> Report {
        let began = Instant::now();
        let of = subject(self.tier);
        let known = self.ledger.as_deref().map(read).unwrap_or_default();
        let all = slices::cut(self.first, self.seeds, self.slice);
        let left = slices::remaining(all.clone(), &of, &known);
        if left.len() < all.len() {
            let done = all.len() - left.len();
            println!("{done} of {} slices are in the ledger already", all.len());
        }
        let mut report = Report {
            sum: Tally::default(),
            failed: Vec::new(),
            ratio: 0.0,
            cut_short: None,
        };
        let mut cpu = Duration::ZERO;
        for slice in left {
            let slice_began = Instant::now();
            let (tally, failed, took) = self.run_slice(slice, began, &one);
            cpu += took;
            report.failed.extend(failed);
            report.sum.add(&tally);
            if tally.seeds < slice.count {
                report.cut_short = Some(format!(
                    "{} of the {} seeds from {} were run: stopped after {} failures, {:.0} s",
                    tally.seeds,
                    slice.count,
                    slice.first,
                    report.failed.len(),
                    began.elapsed().as_secs_f64(),
                ));
                break;
            }
            let line = Line::new(&of, slice, &tally, (slice_began.elapsed(), took));
            self.say(&line);
            if let Some(ledger) = &self.ledger {
                append(ledger, &line);
            }
            if report.failed.len() >= ENOUGH_FAILURES {
                report.cut_short = Some("enough seeds have failed".to_owned());
                break;
            }
        }
        report.ratio = report.sum.simulated.as_secs_f64() / cpu.as_secs_f64().max(0.001);
        println!(
            "{}: {} seeds from {}, {:.0} s simulated in {:.1} s on {} threads: {:.0} times the time of one core",
            self.tier,
            report.sum.seeds,
            self.first,
            report.sum.simulated.as_secs_f64(),
            began.elapsed().as_secs_f64(),
            self.threads,
            report.ratio
        );
        report
    }

    fn say(&self, line: &Line) {
        if self.seeds > self.slice {
            println!(
                "{}: seeds {} to {}: {} s simulated in {} s, {} violations",
                line.tier,
                line.first,
                line.first + line.count - 1,
                line.simulated_ms / 1000,
                line.real_ms / 1000,
                line.violations.len()
            );
        }
    }

    /// All seeds of a slice, unless too many fail or the time is over.
    fn run_slice(
        &self,
        slice: Slice,
        began: Instant,
        one: &(impl Fn(u64) -> Ran + Sync),
    ) -> (Tally, Vec<(u64, String)>, Duration) {
        let (next, stop) = (AtomicU64::new(slice.first), AtomicBool::new(false));
        let done = Mutex::new((Tally::default(), Vec::new(), Duration::ZERO));
        let work = || {
            let cpu = cpu_time();
            while !stop.load(Ordering::Relaxed) && began.elapsed() < self.within {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= slice.first + slice.count {
                    break;
                }
                let ran = catch_unwind(AssertUnwindSafe(|| one(seed)));
                let ran = ran.unwrap_or_else(|why| panicked(seed, &why));
                let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                done.0.add(&ran.tally);
                done.1.extend(ran.failure.map(|said| (seed, said)));
                if done.1.len() >= ENOUGH_FAILURES {
                    stop.store(true, Ordering::Relaxed);
                }
            }
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            done.2 += cpu_time().saturating_sub(cpu);
        };
        std::thread::scope(|scope| {
            for _ in 0..self.threads {
                scope.spawn(work);
            }
        });
        let (mut tally, mut failed, cpu) =
            done.into_inner().unwrap_or_else(PoisonError::into_inner);
        tally.violations.sort_unstable();
        failed.sort_by_key(|(seed, _)| *seed);
        (tally, failed, cpu)
    }
}

impl Report {
    /// Fails loudly when a seed failed or was not run.
    ///
    /// # Panics
    /// So.
    pub fn demand_all(&self) {
        if let Some((_, said)) = self.failed.first() {
            let seeds: Vec<u64> = self.failed.iter().map(|(seed, _)| *seed).collect();
            panic!("{said}failed seeds: {seeds:?}");
        }
        if let Some(why) = &self.cut_short {
            panic!("{why}");
        }
    }
}

fn panicked(seed: u64, why: &Box<dyn Any + Send>) -> Ran {
    let words = why.downcast_ref::<String>().map(String::as_str);
    let words = words.or_else(|| why.downcast_ref::<&str>().copied());
    let words = words.unwrap_or("without words");
    let tally = Tally {
        seeds: 1,
        violations: vec![seed],
        ..Tally::default()
    };
    Ran {
        tally,
        failure: Some(format!(
            "seed {seed} panicked outside of any actor: {words}\n"
        )),
    }
}

/// Processor time of this thread, as Linux counts it; nothing elsewhere.
fn cpu_time() -> Duration {
    let told = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let spent = told.split(' ').next().and_then(|ns| ns.parse().ok());
    Duration::from_nanos(spent.unwrap_or(0))
}

/// The code that is under test, by git; a tree with changes of its own is told apart by them.
fn subject(tier: &str) -> Subject {
    let git = |args: &[&str]| {
        let out = Command::new("git").args(args).output().ok()?;
        let text = String::from_utf8_lossy(&out.stdout).trim().to_owned();
        out.status.success().then_some(text)
    };
    let commit = git(&["rev-parse", "--short", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    // Tests run in the package's folder.
    let mut code = git(&["rev-parse", "HEAD:./"]).unwrap_or_default();
    let changes = git(&["diff", "HEAD", "--", "."]).unwrap_or_default();
    let mut commit = commit;
    if !changes.is_empty() {
        commit.push('+');
        let sum = changes
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
                (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        code = format!("{code}+{sum:016x}");
    }
    Subject {
        tier: tier.to_owned(),
        commit,
        code,
    }
}

/// The ledger; empty when there is none yet.
///
/// # Panics
/// It cannot be read.
pub fn read(path: &Path) -> Vec<Line> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(why) => panic!("{}: {why}", path.display()),
    };
    slices::parse(&text).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

fn append(path: &Path, line: &Line) {
    let mut text = serde_json::to_string(line).unwrap_or_default();
    text.push('\n');
    let written = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()));
    if let Err(why) = written {
        panic!("{}: {why}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn course(ledger: Option<PathBuf>) -> Course {
        Course {
            tier: "test",
            first: 1,
            seeds: 25,
            slice: 10,
            threads: 2,
            ledger,
            within: Duration::MAX,
        }
    }

    fn ran(seed: u64, failure: Option<&str>) -> Ran {
        let tally = Tally {
            seeds: 1,
            simulated: Duration::from_secs(1),
            violations: failure.map(|_| seed).into_iter().collect(),
            ..Tally::default()
        };
        Ran {
            tally,
            failure: failure.map(str::to_owned),
        }
    }

    #[test]
    fn a_second_run_skips_what_is_in_the_ledger() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = dir.path().join("ledger");
        let first = course(Some(ledger.clone())).run(|seed| ran(seed, None));
        assert_eq!(first.sum.seeds, 25);
        first.demand_all();
        let again = course(Some(ledger.clone())).run(|seed| ran(seed, None));
        assert_eq!(again.sum.seeds, 0);
        assert_eq!(read(&ledger).len(), 3);
    }

    #[test]
    fn a_seed_that_fails_or_panics_is_told_and_time_that_is_over_is_no_success() {
        let report = course(None).run(|seed| {
            assert_ne!(seed, 3, "a bug");
            ran(seed, (seed == 7).then_some("broken\n"))
        });
        let seeds: Vec<u64> = report.failed.iter().map(|(seed, _)| *seed).collect();
        assert_eq!((seeds, report.sum.seeds), (vec![3, 7], 25));
        assert_eq!(report.sum.violations, [3, 7]);
        let late = Course {
            within: Duration::ZERO,
            ..course(None)
        };
        let report = late.run(|seed| ran(seed, None));
        assert!(report.cut_short.is_some());
    }
}
