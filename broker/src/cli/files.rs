//! The declarations that `-f` names: files, directories of `*.yaml` and `*.yml`, `-` for stdin.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use streamgauge_aggregator::declaration::{DECLARATION_BYTES_MAX, Declaration};
use streamgauge_aggregator::diagnostic::Diagnostic;

use super::error::CommandError;

/// All declarations of `paths`. Every mistake of every file goes to stderr.
pub(super) fn read_declarations(paths: &[PathBuf]) -> Result<Vec<Declaration>, CommandError> {
    let mut declarations: Vec<(String, Declaration)> = Vec::new();
    let mut mistakes = 0;
    for file in expand(paths)? {
        let name = file.display().to_string();
        let text = read(&file)?;
        match Declaration::parse_all(&text, &name) {
            Ok(parsed) => {
                for declaration in parsed {
                    let topic = &declaration.topic;
                    let other = declarations.iter().find(|(_, known)| known.topic == *topic);
                    if let Some((other, _)) = other {
                        eprintln!("{name}: topic: '{topic}' is declared in {other} too");
                        mistakes += 1;
                    }
                    declarations.push((name.clone(), declaration));
                }
            }
            Err(found) => {
                mistakes += found.len();
                for mistake in found {
                    tell(&mistake);
                }
            }
        }
    }
    if mistakes > 0 {
        let files = if mistakes == 1 { "mistake" } else { "mistakes" };
        eprintln!("{mistakes} {files}");
        return Err(CommandError::Told);
    }
    Ok(declarations
        .into_iter()
        .map(|(_, declaration)| declaration)
        .collect())
}

fn tell(mistake: &Diagnostic) {
    eprintln!("{mistake}");
}

fn expand(paths: &[PathBuf]) -> Result<Vec<PathBuf>, CommandError> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let failed = || path.display().to_string();
        let mut found = Vec::new();
        for entry in fs::read_dir(path).map_err(CommandError::io(failed()))? {
            let file = entry.map_err(CommandError::io(failed()))?.path();
            let extension = file.extension().and_then(|extension| extension.to_str());
            if matches!(extension, Some("yaml" | "yml")) && file.is_file() {
                found.push(file);
            }
        }
        if found.is_empty() {
            return Err(CommandError::Refused(format!(
                "{}: has no *.yaml or *.yml files",
                path.display()
            )));
        }
        found.sort();
        files.extend(found);
    }
    Ok(files)
}

fn read(path: &Path) -> Result<String, CommandError> {
    let name = path.display().to_string();
    let input: Box<dyn Read> = if path == Path::new("-") {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(path).map_err(CommandError::io(name.clone()))?)
    };
    // One byte more than is taken, so that a longer file is told as such.
    let mut text = String::new();
    input
        .take(DECLARATION_BYTES_MAX as u64 + 1)
        .read_to_string(&mut text)
        .map_err(CommandError::io(name))?;
    Ok(text)
}
