//! `slat completions` and `slat man`: made from the same description as the command line itself.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::{Ending, Failure, Line, print};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// The shell
    shell: Shell,
}

/// What each exit code means.
const EXIT_CODES: [(&str, &str); 3] = [
    ("0", "Done; nothing was found."),
    (
        "1",
        "A violation was found. The story of it is printed, with the seed that replays it.",
    ),
    (
        "2",
        "The input is bad, or something could not be read or written. What is wrong with a file is \
         shown with its line and column.",
    ),
];

pub(super) fn completions(options: &Options) -> Result<Ending, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut Line::command(), "slat", &mut script);
    print(String::from_utf8(script).map_err(Failure::other)?)?;
    Ok(Ending::Good)
}

pub(super) fn page() -> Result<Ending, Failure> {
    let mut page = Vec::new();
    render(&mut page).map_err(Failure::other)?;
    print(String::from_utf8(page).map_err(Failure::other)?)?;
    Ok(Ending::Good)
}

/// One page for all: the command, then each subcommand's options, then the exit codes.
fn render(page: &mut Vec<u8>) -> std::io::Result<()> {
    let mut command = Line::command();
    command.build();
    let whole = Man::new(command.clone());
    whole.render_title(page)?;
    whole.render_name_section(page)?;
    whole.render_synopsis_section(page)?;
    whole.render_description_section(page)?;
    let listed = |command: &&clap::Command| command.get_name() != "help";
    for subcommand in command.get_subcommands().filter(listed) {
        let mut roff = Roff::new();
        let name = format!("slat {}", subcommand.get_name()).to_uppercase();
        roff.control("SH", [name.as_str()]);
        roff.to_writer(page)?;
        let man = Man::new(subcommand.clone());
        let mut section = Vec::new();
        man.render_description_section(&mut section)?;
        man.render_options_section(&mut section)?;
        // The sections of a subcommand are subsections of its own.
        let section = String::from_utf8_lossy(&section).replace(".SH ", ".SS ");
        page.extend_from_slice(section.as_bytes());
    }
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in EXIT_CODES {
        roff.control("TP", []);
        roff.text([bold(code)]);
        roff.text([roman(meaning)]);
    }
    roff.to_writer(page)?;
    let mut section = Vec::new();
    whole.render_extra_section(&mut section)?;
    let section = String::from_utf8_lossy(&section).replace(".SH EXTRA", ".SH EXAMPLES");
    page.extend_from_slice(section.as_bytes());
    Ok(())
}
