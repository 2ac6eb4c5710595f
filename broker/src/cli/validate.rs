//! `validate -f`: every mistake of declarations, without a broker.

use std::path::PathBuf;

use clap::Args;

use super::error::CommandError;
use super::files::read_declarations;
use super::terminal::print;

#[derive(Debug, Args)]
pub(super) struct ValidateArgs {
    /// A file, a directory of *.yaml files, or - for stdin; may be repeated.
    #[arg(short, long = "file", required = true, num_args = 1.., value_name = "FILE|DIR")]
    files: Vec<PathBuf>,
}

pub(super) fn run(args: &ValidateArgs) -> Result<(), CommandError> {
    let declarations = read_declarations(&args.files)?;
    let mut text = String::new();
    for declaration in declarations {
        text.push_str(&format!("{}: valid\n", declaration.topic));
    }
    print(&text)
}
