//! The boots of `cargo xtask test`: what a guest must see, and what the memory report must say.

use core::cell::OnceCell;
use core::time::Duration;
use std::env;
use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, anyhow, ensure};
use slat_report::{Kind, Region, Report};

use crate::boot::{check_task, churn_limit};
use crate::compare;
use crate::console::Marker;
use crate::guest::Run;
use crate::kit::{Boot, Build, Kit, Mapping, OwnFiles};
use crate::machine::Cpu;
use crate::test::{Check, Log, Options};
use crate::workspace::Workspace;
use slat_report::size::Size;

/// The most RAM faults that a boot of a 512 MiB guest takes when all its frames are 2 MiB.
const MOST_RAM_FAULTS: u64 = 24;

/// The most device faults of a boot when device memory is mapped on fault in 2 MiB blocks: the
/// devices that Linux touches lie in about ten such blocks.
const MOST_DEVICE_FAULTS: u64 = 16;

/// Blocks of 2 MiB in the 256 MiB BAR, and 4 KiB pages in it.
const BAR_BLOCKS: u64 = 128;
const BAR_PAGES: u64 = 65_536;

/// Changes by the host, and migrations of 2 MiB among them, that a minute of churn must reach.
const CHANGES_A_MINUTE: u64 = 10_000;
const MIGRATIONS_A_MINUTE: u64 = 1_000;

/// The most of the time that the hypervisor may take under churn, in hundredths of a percent.
const MOST_EL2_SHARE: u64 = 4_000;

/// Kits, made when the first boot needs them.
#[derive(Debug)]
pub(crate) struct Kits<'a> {
    workspace: &'a Workspace,
    sound: OnceCell<Result<Kit, String>>,
}

impl<'a> Kits<'a> {
    /// None made yet.
    pub(crate) fn new(workspace: &'a Workspace) -> Self {
        Self {
            workspace,
            sound: OnceCell::new(),
        }
    }

    fn sound(&self, log: &Log) -> Result<&Kit> {
        self.sound
            .get_or_init(|| {
                Kit::gather(
                    self.workspace,
                    Build::Sound,
                    &OwnFiles::default(),
                    &log.journal,
                )
                .map_err(|error| format!("{error:#}"))
            })
            .as_ref()
            .map_err(|error| anyhow!("cannot prepare a boot: {error}"))
    }

    /// Boots, and checks that the guest ended well.
    fn boot(&self, boot: &Boot, log: &Log) -> Result<Run> {
        let run = self.sound(log)?.boot(boot, &log.journal)?;
        run.check()?;
        Ok(run)
    }
}

/// All checks that boot something.
pub(crate) fn checks<'a>(kits: &'a Kits<'_>, options: &'a Options) -> Vec<Check<'a>> {
    let mut checks = vec![
        Check::new("boot: what it needs is there", |log| {
            kits.sound(log).map(|kit| kit.kernel.name.clone())
        }),
        Check::new("boot: directly", |log| direct(kits, log)),
        Check::new("boot: cortex-a57", |log| {
            default_boot(kits, Cpu::CortexA57, log)
        }),
        Check::new("boot: max", |log| default_boot(kits, Cpu::Max, log)),
        Check::new("boot: --mmio fault", |log| devices_on_fault(kits, log)),
        Check::new("boot: --ram create", |log| ram_at_creation(kits, log)),
        Check::new("boot: whole BAR, --mmio create", |log| {
            bar(kits, Mapping::Create, log)
        }),
        Check::new("boot: whole BAR, --mmio fault", |log| {
            bar(kits, Mapping::Fault, log)
        }),
    ];
    for size in ["64M", "512M", "3G", "300004K"] {
        checks.push(Check::new(
            format!("boot: System RAM of {size}"),
            move |log| {
                let size = size.parse().map_err(|error: String| anyhow!(error))?;
                system_ram(kits, size, log)
            },
        ));
    }
    for cpu in [Cpu::CortexA57, Cpu::Max] {
        checks.push(Check::new(
            format!("boot: holes abort, {cpu}"),
            move |log| holes(kits, cpu, log),
        ));
    }
    checks.push(Check::new("boot: a guest's panic fails", |log| {
        panic_fails(kits, log)
    }));
    checks.push(Check::new("boot: wrong sizes are refused", wrong_sizes));
    checks.push(Check::new("boot: --json", |log| json(kits, log)));
    let seconds = options.churn_seconds;
    for &seed in &options.seeds {
        checks.push(Check::new(
            format!("boot: churn for {seconds} s, seed {seed}"),
            move |log| churn(kits, seed, seconds, log),
        ));
    }
    checks.push(Check::new("boot: churn without flushes fails", |log| {
        omitted_flush_fails(kits, log)
    }));
    checks.push(Check::new("boot: --compare", |log| {
        let boot = Boot::default();
        let comparison = compare::run(kits.sound(log)?, &boot, compare::PAIRS, &log.journal)?;
        log.journal.say(format_args!("\n{comparison}"));
        comparison.check()?;
        Ok(comparison.summary())
    }));
    checks
}

/// The report of a hypervised run.
fn report(run: &Run) -> Result<&Report> {
    run.report
        .as_ref()
        .context("the hypervisor wrote no memory report")
}

/// What the guest said about `word`.
fn marker(run: &Run, word: &str) -> Result<Marker> {
    run.console
        .marker(word)
        .with_context(|| format!("the guest said nothing about {word}"))
}

fn number(marker: &Marker, key: &str) -> Result<u64> {
    marker
        .number(key)
        .with_context(|| format!("no number {key} in: {}", marker.words()))
}

/// The regions that are linear device memory; there must be some.
fn device_regions(report: &Report) -> Result<Vec<&Region>> {
    let devices: Vec<_> = report
        .regions
        .iter()
        .filter(|region| region.kind == Kind::Device)
        .collect();
    ensure!(!devices.is_empty(), "the report has no device region");
    Ok(devices)
}

/// Faults on all linear device regions.
fn device_faults(report: &Report) -> Result<u64> {
    Ok(device_regions(report)?
        .iter()
        .map(|region| region.faults)
        .sum())
}

/// The harness itself: the kernel boots without a hypervisor, and the guest finds the BAR.
fn direct(kits: &Kits<'_>, log: &Log) -> Result<String> {
    let boot = Boot {
        hypervised: false,
        tasks: vec!["bar".to_owned()],
        ..Boot::default()
    };
    let run = kits.boot(&boot, log)?;
    check_bar(&run)?;
    Ok(format!("init after {:.1?}", marker(&run, "init")?.at))
}

/// No faults on devices, few on RAM, and RAM that lies elsewhere than the guest believes.
fn default_boot(kits: &Kits<'_>, cpu: Cpu, log: &Log) -> Result<String> {
    let run = kits.boot(
        &Boot {
            cpu,
            ..Boot::default()
        },
        log,
    )?;
    let report = report(&run)?;
    for region in device_regions(report)? {
        ensure!(
            region.faults == 0,
            "{} faults on {}",
            region.faults,
            region.name
        );
        ensure!(
            region.mapped_at_creation == region.size,
            "only {} bytes of {} were mapped at creation",
            region.mapped_at_creation,
            region.name
        );
    }
    let ram = report.faults.ram;
    ensure!((1..=MOST_RAM_FAULTS).contains(&ram), "{ram} RAM faults");
    let translated = report
        .regions
        .iter()
        .filter(|region| region.kind == Kind::Ram)
        .all(|region| region.hpa.is_some_and(|hpa| hpa != region.gpa));
    ensure!(
        translated,
        "guest RAM is not translated, or the report does not say where it lies"
    );
    Ok(format!("0 device faults, {ram} RAM faults"))
}

/// The faults that mapping at creation saves.
fn devices_on_fault(kits: &Kits<'_>, log: &Log) -> Result<String> {
    let run = kits.boot(
        &Boot {
            mmio: Mapping::Fault,
            ..Boot::default()
        },
        log,
    )?;
    let report = report(&run)?;
    let faults = device_faults(report)?;
    ensure!(
        (1..=MOST_DEVICE_FAULTS).contains(&faults),
        "{faults} device faults"
    );
    ensure!(
        report.faults.mmio >= faults,
        "the counts of device faults disagree"
    );
    Ok(format!("{faults} device faults"))
}

/// RAM that is there before the guest starts takes no faults.
fn ram_at_creation(kits: &Kits<'_>, log: &Log) -> Result<String> {
    let run = kits.boot(
        &Boot {
            ram: Mapping::Create,
            ..Boot::default()
        },
        log,
    )?;
    let faults = report(&run)?.faults.ram;
    ensure!(faults == 0, "{faults} RAM faults");
    Ok("0 RAM faults".to_owned())
}

/// Every page of the BAR touched and verified by the guest.
fn bar(kits: &Kits<'_>, mmio: Mapping, log: &Log) -> Result<String> {
    let run = kits.boot(
        &Boot {
            mmio,
            tasks: vec!["bar".to_owned()],
            ..Boot::default()
        },
        log,
    )?;
    check_bar(&run)?;
    let faults = device_faults(report(&run)?)?;
    match mmio {
        Mapping::Create => ensure!(faults == 0, "{faults} device faults"),
        Mapping::Fault => ensure!(
            (1..=BAR_BLOCKS + MOST_DEVICE_FAULTS).contains(&faults),
            "{faults} device faults"
        ),
    }
    Ok(format!("{BAR_PAGES} pages, {faults} device faults in all"))
}

fn check_bar(run: &Run) -> Result<()> {
    let bar = marker(run, "bar")?;
    let (pages, mismatches) = (number(&bar, "pages")?, number(&bar, "mismatches")?);
    ensure!(
        pages == BAR_PAGES && mismatches == 0,
        "the guest reports: {}",
        bar.words()
    );
    Ok(())
}

/// The guest believes to have exactly what a machine of that size has.
fn system_ram(kits: &Kits<'_>, size: Size, log: &Log) -> Result<String> {
    let measure = |hypervised| -> Result<u64> {
        let run = kits.boot(
            &Boot {
                hypervised,
                guest_memory: size,
                ..Boot::default()
            },
            log,
        )?;
        number(&marker(&run, "memory")?, "system_ram")
    };
    let (direct, guest) = (measure(false)?, measure(true)?);
    ensure!(
        guest == direct,
        "{guest} bytes, but {direct} in a direct boot"
    );
    ensure!(guest > 0, "the guest found no System RAM");
    Ok(format!("{guest} bytes, as in a direct boot"))
}

/// Addresses in no region abort in the guest: between devices, right behind guest RAM where the
/// machine does have memory, and far above everything.
fn holes(kits: &Kits<'_>, cpu: Cpu, log: &Log) -> Result<String> {
    const RAM: u64 = 0x4000_0000;
    let guest_memory = Boot::default().guest_memory;
    let addresses = [0x0b00_0000, RAM + guest_memory.0, 0x3f_0000_0000];
    let boot = Boot {
        cpu,
        guest_memory,
        tasks: addresses
            .iter()
            .map(|address| format!("hole:{address:#x}"))
            .collect(),
        ..Boot::default()
    };
    let run = kits.boot(&boot, log)?;
    let aborted = run
        .console
        .markers()
        .filter(|marker| marker.word == "hole")
        .filter(|marker| marker.is("read_abort", "true") && marker.is("write_abort", "true"))
        .count();
    ensure!(
        aborted == addresses.len(),
        "{aborted} of {} holes aborted",
        addresses.len()
    );
    let injected = report(&run)?.faults.injected;
    let expected = 2 * addresses.len() as u64;
    ensure!(
        injected == expected,
        "{injected} aborts injected, not {expected}"
    );
    Ok(format!("{injected} external aborts in the guest"))
}

/// A guest that panics must not pass for one that powers off.
fn panic_fails(kits: &Kits<'_>, log: &Log) -> Result<String> {
    let boot = Boot {
        append: "rdinit=/missing init=/missing".to_owned(),
        ..Boot::default()
    };
    let run = kits.sound(log)?.boot(&boot, &log.journal)?;
    match run.check() {
        Ok(()) => Err(anyhow!("the boot passed")),
        Err(error) if error.to_string().contains("reset") => Ok(error.to_string()),
        Err(error) => Err(error.context("the boot failed, but not by the guest's reset")),
    }
}

/// The command itself with sizes that cannot be.
fn wrong_sizes(log: &Log) -> Result<String> {
    const WRONG: [&[&str]; 5] = [
        &["--guest-memory", "63M"],
        &["--guest-memory", "64M1"],
        &["--guest-memory", "67108865"],
        &["--guest-memory", "1024T"],
        &["--guest-memory", "2G", "--machine-memory", "1G"],
    ];
    for words in WRONG {
        let output = Command::new(env::current_exe()?)
            .arg("boot")
            .args(words)
            .output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        log.journal.say(format_args!("{}: {text}", words.join(" ")));
        ensure!(!output.status.success(), "{} was taken", words.join(" "));
        ensure!(
            text.contains("--guest-memory"),
            "{}: {text}",
            words.join(" ")
        );
    }
    Ok(format!("{} sizes", WRONG.len()))
}

/// The command itself, and the file that it writes.
fn json(kits: &Kits<'_>, log: &Log) -> Result<String> {
    let path = kits.workspace.directory("test-logs")?.join("report.json");
    // A file of an earlier run must not pass for the new one.
    fs::write(&path, "")?;
    let mut command = Command::new(env::current_exe()?);
    command.args(["boot", "--json"]).arg(&path);
    log.journal.run(&mut command)?;
    let json: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
    let regions = json["regions"].as_array().context("`regions` is no list")?;
    for region in regions {
        for field in ["name", "kind", "gpa", "hpa", "size", "mapped", "faults"] {
            ensure!(region.get(field).is_some(), "a region has no `{field}`");
        }
    }
    ensure!(json["init_ns"].is_u64(), "`init_ns` is missing");
    Ok(format!("{} regions", regions.len()))
}

/// A boot in which the guest checks its memory while the host changes it.
fn churn_boot(seed: u64, seconds: u64) -> Boot {
    let guest_memory = Boot::default().guest_memory;
    Boot {
        churn: Some(seed),
        tasks: vec![check_task(guest_memory, seconds, seed)],
        limit: Some(churn_limit(seconds)),
        ..Boot::default()
    }
}

/// The guest must not notice the changes; they must have been made; no frame may be lost.
fn churn(kits: &Kits<'_>, seed: u64, seconds: u64, log: &Log) -> Result<String> {
    let run = kits.boot(&churn_boot(seed, seconds), log)?;
    let check = marker(&run, "check")?;
    ensure!(
        number(&check, "mismatches")? == 0,
        "the guest reports: {}",
        check.words()
    );
    ensure!(
        number(&check, "rounds")? > 0 && number(&check, "files")? > 0,
        "no work was done"
    );

    let report = report(&run)?;
    let churn = report
        .churn
        .as_ref()
        .context("the report says nothing about churn")?;
    let (changes, migrations) = (churn.total, churn.migrations_2m);
    let least_changes = CHANGES_A_MINUTE * seconds / 60;
    let least_migrations = MIGRATIONS_A_MINUTE * seconds / 60;
    ensure!(
        changes >= least_changes,
        "{changes} changes, fewer than {least_changes}"
    );
    ensure!(
        migrations >= least_migrations,
        "{migrations} migrations, fewer than {least_migrations}"
    );
    let (before, after) = (churn.frames_before, churn.frames_after);
    ensure!(
        before == after && before > 0,
        "{before} free frames before, {after} after"
    );
    let share = report.times.el2_share_bp;
    ensure!(
        share <= MOST_EL2_SHARE,
        "{} % of the time went to EL2",
        share / 100
    );
    Ok(format!(
        "{changes} changes, {migrations} of 2M migrated, {} % in EL2",
        share / 100
    ))
}

/// Without TLB invalidations the guest must fail, by a mismatch, a panic or a hang: else the checks
/// above prove nothing.
fn omitted_flush_fails(kits: &Kits<'_>, log: &Log) -> Result<String> {
    let kit = Kit::gather(
        kits.workspace,
        Build::OmitFlush,
        &OwnFiles::default(),
        &log.journal,
    )?;
    // With flushes a boot with so much work is over in half the time.
    let boot = Boot {
        limit: Some(Duration::from_mins(1)),
        ..churn_boot(1, 10)
    };
    let run = kit.boot(&boot, &log.journal)?;
    ensure!(
        run.console.contains("slat: "),
        "the hypervisor did not even start"
    );
    match run.check() {
        Ok(()) => Err(anyhow!("the guest noticed nothing")),
        Err(error) => Ok(format!("{error:#}")),
    }
}
