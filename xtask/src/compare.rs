//! `cargo xtask boot --compare`: what the hypervisor costs a boot.
//!
//! The same kernel boots to init on the same machine with and without the hypervisor below it.
//! Counted in instructions, the guest time from the kernel's entry to init repeats almost exactly,
//! but leaves out that an emulated two-stage walk takes longer; so wall-clock time from the start
//! of the machine to init is compared too, in pairs taken one after the other, by their median.

use core::fmt::{self, Display};
use core::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::guest::Run;
use crate::journal::Journal;
use crate::kit::{Boot, Kit};
use crate::machine::Cpu;

/// How many pairs of boots the wall-clock ratio is the median of.
pub(crate) const PAIRS: usize = 5;

/// The most that a boot may cost, as ratios to the direct boot.
const MOST_COUNTED: f64 = 1.10;
const MOST_WALL_CLOCK: f64 = 1.5;

/// Times to init, directly and on the hypervisor.
#[derive(Debug)]
pub(crate) struct Comparison {
    cpu: Cpu,
    kernel: String,
    /// Ticks from entry to init with time counted in instructions.
    counted: Pair<u64>,
    /// From the start of the machine to init, pair by pair.
    wall_clock: Vec<Pair<Duration>>,
}

/// One measure, directly and on the hypervisor.
#[derive(Debug, Clone, Copy)]
struct Pair<T> {
    direct: T,
    hypervised: T,
}

/// Boots and measures.
pub(crate) fn run(kit: &Kit, boot: &Boot, pairs: usize, journal: &Journal) -> Result<Comparison> {
    let measure = |hypervised, counted| {
        let what = if hypervised {
            "on the hypervisor"
        } else {
            "directly"
        };
        let boot = Boot {
            hypervised,
            counted,
            // Instructions take longer to count than to run.
            limit: boot.limit.map(|limit| limit * 2),
            ..boot.clone()
        };
        let run = kit.boot(&boot, &Journal::File(log(kit)?)).context(what)?;
        run.check()
            .with_context(|| format!("{what}:\n{}", run.console.tail(20)))?;
        Ok::<Run, anyhow::Error>(run)
    };
    let ticks = |run: Run| {
        run.ticks_to_init()
            .context("the guest did not say when init ran")
    };
    let wall_clock = |run: Run| {
        run.console
            .marker("init")
            .map(|init| init.at)
            .context("the guest did not reach init")
    };

    journal.say("counting instructions to init, directly and on the hypervisor");
    let counted = Pair {
        direct: ticks(measure(false, true)?)?,
        hypervised: ticks(measure(true, true)?)?,
    };
    let wall_clock = (1..=pairs)
        .map(|number| {
            journal.say(format_args!("pair {number} of {pairs} by wall clock"));
            Ok(Pair {
                direct: wall_clock(measure(false, false)?)?,
                hypervised: wall_clock(measure(true, false)?)?,
            })
        })
        .collect::<Result<_>>()?;
    Ok(Comparison {
        cpu: boot.cpu,
        kernel: kit.kernel.name.clone(),
        counted,
        wall_clock,
    })
}

/// The consoles of so many boots would only hide the result; they go into a file.
fn log(kit: &Kit) -> Result<std::fs::File> {
    let path = kit.log();
    std::fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))
}

impl Comparison {
    /// The ratio of instruction-counted times to init.
    fn counted_ratio(&self) -> f64 {
        ratio(self.counted.hypervised, self.counted.direct)
    }

    /// The median of the ratios of wall-clock times to init.
    fn wall_clock_ratio(&self) -> f64 {
        let mut ratios: Vec<_> = self.wall_clock.iter().map(Pair::ratio).collect();
        ratios.sort_by(f64::total_cmp);
        let middle = ratios.len() / 2;
        match ratios.len() {
            0 => f64::NAN,
            length if length % 2 == 1 => ratios[middle],
            _ => f64::midpoint(ratios[middle - 1], ratios[middle]),
        }
    }

    /// Checks that the hypervisor costs no more than it may.
    pub(crate) fn check(&self) -> Result<()> {
        let (counted, wall_clock) = (self.counted_ratio(), self.wall_clock_ratio());
        ensure!(
            counted <= MOST_COUNTED,
            "counted in instructions the hypervisor takes {counted:.3} times as long to init, \
             more than {MOST_COUNTED:.2}"
        );
        ensure!(
            wall_clock <= MOST_WALL_CLOCK,
            "by wall clock the hypervisor takes {wall_clock:.2} times as long to init, \
             more than {MOST_WALL_CLOCK:.1}"
        );
        Ok(())
    }

    /// Both ratios on one line.
    pub(crate) fn summary(&self) -> String {
        let (counted, wall_clock) = (self.counted_ratio(), self.wall_clock_ratio());
        format!(
            "{}: instructions {counted:.3}, wall clock {wall_clock:.2}",
            self.cpu
        )
    }
}

impl Pair<Duration> {
    fn ratio(&self) -> f64 {
        self.hypervised.as_secs_f64() / self.direct.as_secs_f64()
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "ticks of one boot stay far below 2^52"
)]
fn ratio(numerator: u64, denominator: u64) -> f64 {
    numerator as f64 / denominator as f64
}

impl Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cpu,
            kernel,
            counted,
            ..
        } = self;
        writeln!(
            f,
            "Time to init of {kernel} on {cpu}: directly, on the hypervisor, ratio"
        )?;
        writeln!(
            f,
            "  counted in instructions  {:>10} ticks  {:>10} ticks  {:.3} (limit {MOST_COUNTED:.2})",
            counted.direct,
            counted.hypervised,
            self.counted_ratio()
        )?;
        for pair in &self.wall_clock {
            let Pair { direct, hypervised } = pair;
            writeln!(
                f,
                "  wall clock               {direct:>15.2?}  {hypervised:>15.2?}  {:>6.2}",
                pair.ratio()
            )?;
        }
        writeln!(
            f,
            "  median of wall-clock ratios  {:.2} (limit {MOST_WALL_CLOCK:.1})",
            self.wall_clock_ratio()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn comparison(hypervised: u64, milliseconds: &[u64]) -> Comparison {
        let pair = |hypervised| Pair {
            direct: Duration::from_secs(1),
            hypervised: Duration::from_millis(hypervised),
        };
        Comparison {
            cpu: Cpu::Max,
            kernel: "vmlinuz".to_owned(),
            counted: Pair {
                direct: 1000,
                hypervised,
            },
            wall_clock: milliseconds.iter().copied().map(pair).collect(),
        }
    }

    #[test]
    fn the_median_counts() {
        assert!(
            comparison(1100, &[900, 9000, 1400, 1500, 8000])
                .check()
                .is_ok()
        );
        assert!(
            comparison(1100, &[900, 9000, 1501, 1600, 1400])
                .check()
                .is_err()
        );
    }

    #[test]
    fn instructions_have_their_own_limit() {
        let error = comparison(1101, &[1000]).check().unwrap_err().to_string();
        assert!(error.contains("1.101"), "{error}");
    }

    #[test]
    fn no_measure_is_no_success() {
        assert!(comparison(1000, &[]).check().is_err());
    }

    #[test]
    fn both_ratios_and_the_cpu_are_printed() {
        let text = comparison(1018, &[1200, 1300, 1250]).to_string();
        for expected in ["max", "1.018", "1.25", "limit 1.10", "limit 1.5"] {
            assert!(text.contains(expected), "no `{expected}` in\n{text}");
        }
    }
}
