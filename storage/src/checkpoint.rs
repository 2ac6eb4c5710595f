//! Small files that are replaced whole: Kafka's checkpoint files and `meta.properties`.
//!
//! ```text
//! checkpoint:  <version>\n<count of lines>\n<line>\n…
//! meta.properties:  cluster.id=…\ndirectory.id=…\nnode.id=…\nversion=1\n   (Java properties)
//! ```

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::disk::Disk;

/// The name of the file that says whose a data directory is.
pub const META_PROPERTIES: &str = "meta.properties";

/// Larger files are none of these.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Whose a data directory is (KIP-866, KIP-631).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaProperties {
    pub cluster_id: String,
    pub node_id: i32,
    /// A random UUID, in Kafka's base64 form.
    pub directory_id: String,
}

#[derive(Debug, Error)]
pub enum CheckpointError {
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{} is malformed: {reason}", path.display())]
    Malformed { path: PathBuf, reason: String },
}

/// Writes a file so that a crash leaves the old content or the new, never a mixture: a temporary
/// file is written, synced and renamed over it, and the directory is synced.
pub fn replace_file(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let failed = |action| {
        move |source| CheckpointError::Io {
            action,
            path: path.to_owned(),
            source,
        }
    };
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let file = disk.create(&temporary).map_err(failed("create"))?;
    file.write_at(0, &[IoSlice::new(bytes)])
        .map_err(failed("write"))?;
    file.sync_data().map_err(failed("sync"))?;
    disk.rename(&temporary, path).map_err(failed("replace"))?;
    if let Some(directory) = path.parent() {
        disk.sync_dir(directory)
            .map_err(failed("sync the directory of"))?;
    }
    Ok(())
}

/// A whole small file, or `None` if there is none.
pub fn read_file(disk: &dyn Disk, path: &Path) -> Result<Option<Vec<u8>>, CheckpointError> {
    let failed = |source| CheckpointError::Io {
        action: "read",
        path: path.to_owned(),
        source,
    };
    if !disk.exists(path).map_err(failed)? {
        return Ok(None);
    }
    let file = disk.open(path).map_err(failed)?;
    let len = file.len().map_err(failed)?;
    if len > FILE_BYTES_MAX {
        return Err(malformed(path, format!("it has {len} bytes")));
    }
    let mut bytes = vec![0; len as usize];
    file.read_at(0, &mut bytes).map_err(failed)?;
    Ok(Some(bytes))
}

/// Replaces a checkpoint file. No line may hold a line break.
pub fn write_checkpoint(
    disk: &dyn Disk,
    path: &Path,
    version: u32,
    lines: &[String],
) -> Result<(), CheckpointError> {
    let mut text = format!("{version}\n{}\n", lines.len());
    for line in lines {
        assert!(
            !line.contains('\n'),
            "checkpoint line {line:?} breaks its line"
        );
        text.push_str(line);
        text.push('\n');
    }
    replace_file(disk, path, text.as_bytes())
}

/// The lines of a checkpoint file of the given version, or `None` if there is none.
pub fn read_checkpoint(
    disk: &dyn Disk,
    path: &Path,
    version: u32,
) -> Result<Option<Vec<String>>, CheckpointError> {
    let Some(text) = read_text(disk, path)? else {
        return Ok(None);
    };
    let mut lines = text.lines();
    let found = lines.next().unwrap_or_default();
    if found.trim().parse() != Ok(version) {
        return Err(malformed(
            path,
            format!("version {found:?}, expected {version}"),
        ));
    }
    let count = lines.next().unwrap_or_default();
    let lines: Vec<String> = lines.map(str::to_owned).collect();
    if count.trim().parse() != Ok(lines.len()) {
        return Err(malformed(
            path,
            format!("it says {count:?} lines and holds {}", lines.len()),
        ));
    }
    Ok(Some(lines))
}

impl MetaProperties {
    /// Writes `meta.properties` into a data directory.
    pub fn write(&self, disk: &dyn Disk, directory: &Path) -> Result<(), CheckpointError> {
        let Self {
            cluster_id,
            node_id,
            directory_id,
        } = self;
        let text = format!(
            "cluster.id={cluster_id}\ndirectory.id={directory_id}\nnode.id={node_id}\nversion=1\n"
        );
        replace_file(disk, &directory.join(META_PROPERTIES), text.as_bytes())
    }

    /// Reads a data directory's `meta.properties`; `None` if it is a fresh directory.
    pub fn read(disk: &dyn Disk, directory: &Path) -> Result<Option<Self>, CheckpointError> {
        let path = directory.join(META_PROPERTIES);
        let Some(text) = read_text(disk, &path)? else {
            return Ok(None);
        };
        let property = |name: &str| {
            text.lines()
                .map(str::trim)
                .filter(|line| !line.starts_with(['#', '!']))
                .filter_map(|line| line.split_once(['=', ':']))
                .find(|(key, _)| key.trim() == name)
                .map(|(_, value)| value.trim())
                .ok_or_else(|| malformed(&path, format!("{name} is missing")))
        };
        let version = property("version")?;
        if version != "1" {
            return Err(malformed(
                &path,
                format!("version is {version:?}, expected 1"),
            ));
        }
        let node_id = property("node.id")?;
        Ok(Some(Self {
            cluster_id: property("cluster.id")?.to_owned(),
            node_id: node_id
                .parse()
                .map_err(|_| malformed(&path, format!("node.id is {node_id:?}")))?,
            directory_id: property("directory.id")?.to_owned(),
        }))
    }
}

fn read_text(disk: &dyn Disk, path: &Path) -> Result<Option<String>, CheckpointError> {
    read_file(disk, path)?
        .map(|bytes| {
            String::from_utf8(bytes).map_err(|_| malformed(path, "it is not UTF-8".to_owned()))
        })
        .transpose()
}

fn malformed(path: &Path, reason: String) -> CheckpointError {
    CheckpointError::Malformed {
        path: path.to_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::sim::SimDisk;

    fn disk() -> SimDisk {
        let disk = SimDisk::new();
        disk.create_dir_all(Path::new("/d")).unwrap();
        disk
    }

    #[test]
    fn a_checkpoint_comes_back_and_a_missing_one_is_none() {
        let disk = disk();
        let path = Path::new("/d/c");
        assert_eq!(read_checkpoint(&disk, path, 0).unwrap(), None);
        for lines in [vec!["0 0".to_owned(), "3 17".to_owned()], Vec::new()] {
            write_checkpoint(&disk, path, 0, &lines).unwrap();
            assert_eq!(read_checkpoint(&disk, path, 0).unwrap(), Some(lines));
        }
        assert!(read_checkpoint(&disk, path, 1).is_err());
    }

    #[test]
    fn a_malformed_checkpoint_is_refused() {
        let disk = disk();
        let path = Path::new("/d/c");
        for text in ["", "0", "0\nx\n", "0\n2\na\n", "0\n1\na\nb\n", "x\n0\n"] {
            replace_file(&disk, path, text.as_bytes()).unwrap();
            assert!(read_checkpoint(&disk, path, 0).is_err(), "{text:?}");
        }
    }

    #[test]
    fn meta_properties_come_back_and_kafkas_form_is_read() {
        let disk = disk();
        let directory = Path::new("/d");
        assert_eq!(MetaProperties::read(&disk, directory).unwrap(), None);
        let meta = MetaProperties {
            cluster_id: "MkU3OEVBNTcwNTJENDM2Qg".to_owned(),
            node_id: 4,
            directory_id: "4yZ0sS0dQGyzKhdYD5UyCQ".to_owned(),
        };
        meta.write(&disk, directory).unwrap();
        assert_eq!(
            MetaProperties::read(&disk, directory).unwrap(),
            Some(meta.clone())
        );

        let kafka = "#\n#Sun Nov 22 23:00:00 UTC 2026\nnode.id=4\nversion=1\n\
                     directory.id=4yZ0sS0dQGyzKhdYD5UyCQ\ncluster.id=MkU3OEVBNTcwNTJENDM2Qg\n";
        let path = directory.join(META_PROPERTIES);
        replace_file(&disk, &path, kafka.as_bytes()).unwrap();
        assert_eq!(MetaProperties::read(&disk, directory).unwrap(), Some(meta));

        replace_file(&disk, &path, b"version=1\nnode.id=x\n").unwrap();
        assert!(MetaProperties::read(&disk, directory).is_err());
    }

    #[test]
    fn a_crash_leaves_the_old_content_or_the_new() {
        for seed in 0..64_u64 {
            let disk = disk();
            disk.sync_dir(Path::new("/")).unwrap();
            let path = Path::new("/d/c");
            replace_file(&disk, path, b"old").unwrap();
            disk.set_faults(crate::disk::sim::Faults {
                stop_after: Some(seed % 6),
                ..Default::default()
            });
            let replaced = replace_file(&disk, path, b"new").is_ok();
            let mut state = seed;
            disk.crash(&mut || {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                state >> 33
            });
            let content = read_file(&disk, path).unwrap().unwrap();
            assert!(content == b"new" || (!replaced && content == b"old"));
        }
    }
}
