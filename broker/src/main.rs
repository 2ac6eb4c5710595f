//! The `streamgauge` program; everything is in the library's `cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    streamgauge::cli::main()
}
