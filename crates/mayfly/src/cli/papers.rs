//! `mayfly completions` and `mayfly man`: the words of the help, for shells and for `man`.

use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

use super::{CliError, words};

/// Arguments of `mayfly completions`.
#[derive(Args, Debug)]
pub(crate) struct CompletionsArgs {
    /// Which shell: for bash `source <(mayfly completions bash)`
    #[arg(value_enum)]
    shell: Shell,
}

/// Arguments of `mayfly man`.
#[derive(Args, Debug)]
pub(crate) struct ManArgs {
    /// Where to write them; it is made if it is not there
    dir: PathBuf,
}

pub(crate) fn completions(args: &CompletionsArgs) -> Result<(), CliError> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut words(), "mayfly", &mut text);
    let mut out = std::io::stdout();
    std::io::Write::write_all(&mut out, &text).map_err(CliError::io("cannot write"))
}

pub(crate) fn man(args: &ManArgs) -> Result<(), CliError> {
    let failed = || CliError::io(format!("cannot write to `{}`", args.dir.display()));
    std::fs::create_dir_all(&args.dir).map_err(failed())?;
    clap_mangen::generate_to(words(), &args.dir).map_err(failed())
}
