//! Writes the seeds of both targets to `corpus/`, where cargo-fuzz looks for them.

use std::{fs, io, path::Path};

fn main() -> io::Result<()> {
    write(
        "request_frame",
        bodies::seeds::frames().map(|seed| seed.frame),
    )?;
    write("record_batch", bodies::seeds::batches().into_iter())
}

fn write(target: &str, seeds: impl Iterator<Item = Vec<u8>>) -> io::Result<()> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    fs::create_dir_all(&directory)?;
    for (number, seed) in seeds.enumerate() {
        fs::write(directory.join(format!("seed-{number}")), seed)?;
    }
    Ok(())
}
