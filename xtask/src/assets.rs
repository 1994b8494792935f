//! The guest's kernel and busybox, fetched through apt.
//!
//! The distribution's unmodified arm64 packages are downloaded with apt's state kept below the
//! target directory, so that nothing of the user's system changes and no root is needed, and are
//! unpacked there. They are fetched once; remove the directory to fetch them anew.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use flate2::read::GzDecoder;

use crate::host::{self, Family};
use crate::image;
use crate::journal::{Journal, capture};

/// Packages that name the newest kernel for virtual machines: Debian's, then Ubuntu's.
const KERNEL_PACKAGES: [&str; 2] = ["linux-image-cloud-arm64", "linux-image-virtual"];

/// A kernel that the machine can load.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    /// An uncompressed arm64 `Image`.
    pub(crate) image: PathBuf,
    /// What it is, for people.
    pub(crate) name: String,
}

/// Files that apt has brought.
#[derive(Debug)]
pub(crate) struct Assets {
    /// The distribution's kernel.
    pub(crate) kernel: Kernel,
    /// A static arm64 busybox.
    pub(crate) busybox: PathBuf,
}

impl Assets {
    /// Finds the files below `directory`, or fetches them and says so.
    pub(crate) fn find_or_fetch(directory: &Path, journal: &Journal) -> Result<Self> {
        let unpacked = directory.join("unpacked");
        if !unpacked.is_dir() {
            if host::family() == Family::Other {
                bail!(
                    "this is not Debian or Ubuntu, so there is no apt to fetch a kernel and \
                     busybox; give your own with --kernel FILE --initrd FILE"
                );
            }
            fetch(directory, &unpacked, journal).context(
                "cannot fetch an arm64 kernel and busybox-static through apt; if this \
                 machine's package sources have none for arm64, give your own with \
                 --kernel FILE --initrd FILE",
            )?;
        }
        let boot = unpacked.join("boot");
        let compressed = files(&boot)?
            .into_iter()
            .find(|path| file_name(path).starts_with("vmlinuz-"))
            .ok_or_else(|| anyhow!("no kernel in {}", boot.display()))?;
        let busybox = ["bin/busybox", "usr/bin/busybox"]
            .map(|path| unpacked.join(path))
            .into_iter()
            .find(|path| path.is_file())
            .ok_or_else(|| anyhow!("no busybox in {}", unpacked.display()))?;
        Ok(Self {
            kernel: Kernel::prepare(&compressed, directory)?,
            busybox,
        })
    }
}

impl Kernel {
    /// Makes the kernel in `file` loadable: a compressed one is unpacked into `directory`.
    pub(crate) fn prepare(file: &Path, directory: &Path) -> Result<Self> {
        let bytes =
            fs::read(file).with_context(|| format!("cannot read kernel {}", file.display()))?;
        let name = file_name(file);
        let unpacked = if bytes.starts_with(&[0x1f, 0x8b]) {
            let mut unpacked = Vec::new();
            GzDecoder::new(bytes.as_slice())
                .read_to_end(&mut unpacked)
                .with_context(|| format!("cannot decompress kernel {}", file.display()))?;
            Some(unpacked)
        } else {
            None
        };
        image::check(unpacked.as_deref().unwrap_or(&bytes))
            .with_context(|| format!("{} is no kernel for this machine", file.display()))?;
        let image = match unpacked {
            None => file.to_owned(),
            Some(unpacked) => {
                let path = directory.join(format!("{name}.Image"));
                fs::write(&path, unpacked)?;
                path
            }
        };
        Ok(Self { image, name })
    }
}

/// Downloads and unpacks the packages into `unpacked`, which appears only when it is complete.
fn fetch(directory: &Path, unpacked: &Path, journal: &Journal) -> Result<()> {
    let apt = directory.join("apt");
    let packages = directory.join("packages");
    let partial = directory.join("unpacked.partial");
    for path in [&packages, &partial] {
        if path.exists() {
            fs::remove_dir_all(path)?;
        }
        fs::create_dir_all(path)?;
    }
    for path in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(apt.join(path))?;
    }
    journal.say(format_args!(
        "fetching the distribution's arm64 kernel and busybox through apt into {} \
         (the system is not changed)",
        directory.display()
    ));
    // A third-party source that has nothing for arm64 may fail here; what counts is whether the
    // packages are found afterwards.
    if let Err(error) = journal.run(private_apt("apt-get", &apt).args(["--quiet", "update"])) {
        journal.say(format_args!("{error:#}"));
    }
    let kernel = KERNEL_PACKAGES
        .into_iter()
        .find_map(|package| kernel_package(&apt, package))
        .ok_or_else(|| anyhow!("apt knows none of {} for arm64", KERNEL_PACKAGES.join(", ")))?;
    journal.run(
        private_apt("apt-get", &apt)
            .args(["--quiet", "download", &kernel, "busybox-static"])
            .current_dir(&packages),
    )?;
    let archives = files(&packages)?;
    ensure!(
        archives.len() == 2,
        "apt downloaded {archives:?} instead of two packages"
    );
    for archive in archives {
        journal.run(
            Command::new("dpkg-deb")
                .arg("-x")
                .arg(archive)
                .arg(&partial),
        )?;
    }
    fs::rename(&partial, unpacked)?;
    Ok(())
}

/// The versioned kernel package that `package` depends on, if apt knows it.
fn kernel_package(apt: &Path, package: &str) -> Option<String> {
    let text = capture(private_apt("apt-cache", apt).args(["depends", package])).ok()?;
    dependency(&text)
}

/// The first kernel in the output of `apt-cache depends`.
fn dependency(text: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .map(|name| name.split(':').next().unwrap_or(name).to_owned())
}

/// An apt program for arm64 with all its state below `apt`.
fn private_apt(program: &str, apt: &Path) -> Command {
    let mut command = Command::new(program);
    let option = |name: &str, value: &str| format!("-o{name}={value}");
    let path = |name: &str| apt.join(name).display().to_string();
    command.args([
        option("APT::Architecture", "arm64"),
        option("APT::Architectures", "arm64"),
        option("APT::Sandbox::User", "root"),
        option("Acquire::Retries", "3"),
        option("Dir::State::Lists", &path("lists")),
        option("Dir::Cache", &path("cache")),
        option("Dir::State::status", "/dev/null"),
    ]);
    command
}

/// The entries of `directory` in order of name.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = fs::read_dir(directory)
        .with_context(|| format!("cannot read {}", directory.display()))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()?;
    paths.sort();
    Ok(paths)
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    #[test]
    fn the_kernel_is_what_the_meta_package_depends_on() {
        let text = "linux-image-cloud-arm64\n  Depends: linux-image-6.1.0-40-cloud-arm64\n";
        assert_eq!(
            dependency(text).as_deref(),
            Some("linux-image-6.1.0-40-cloud-arm64")
        );
        let text = "linux-image-virtual\n  Depends: linux-image-6.8.0-1-generic:arm64\n";
        assert_eq!(
            dependency(text).as_deref(),
            Some("linux-image-6.8.0-1-generic")
        );
        assert_eq!(dependency("busybox\n  Depends: libc6\n"), None);
    }

    #[test]
    fn a_compressed_kernel_is_unpacked_and_a_strange_file_refused() {
        let directory = tempfile::tempdir().unwrap();
        let image = image::tests::smallest();
        let packed = directory.path().join("vmlinuz");
        let mut encoder = GzEncoder::new(fs::File::create(&packed).unwrap(), Compression::fast());
        encoder.write_all(&image).unwrap();
        encoder.finish().unwrap();
        let kernel = Kernel::prepare(&packed, directory.path()).unwrap();
        assert_eq!(fs::read(&kernel.image).unwrap(), image);
        assert_eq!(kernel.name, "vmlinuz");

        let plain = directory.path().join("Image");
        fs::write(&plain, &image).unwrap();
        assert_eq!(
            Kernel::prepare(&plain, directory.path()).unwrap().image,
            plain
        );

        let strange = directory.path().join("notes.txt");
        fs::write(&strange, "hello").unwrap();
        let error = Kernel::prepare(&strange, directory.path()).unwrap_err();
        assert!(format!("{error:#}").contains("notes.txt"), "{error:#}");
    }
}
