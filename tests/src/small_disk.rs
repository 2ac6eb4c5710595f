//! Disks that can be full: a small tmpfs in a mount namespace of a test's own, so nothing of it is left however the test ends.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::fetch::missing;
use crate::process::run;

const TIME_MAX: Duration = Duration::from_secs(30);
const PAGE_BYTES: usize = 4096;
/// Set for the copy of a test that runs in a namespace of its own.
const INSIDE: &str = "SMALL_DISK_INSIDE";

/// Runs `test` where it may mount: in another process of this binary, which runs the test called `name` alone. Skips it,
/// and says so, where nobody may.
pub fn where_disks_can_be_mounted(name: &str, time_max: Duration, test: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return test();
    }
    let Some(mut inside) = namespace() else {
        return;
    };
    inside
        .arg(std::env::current_exe().expect("a running program has a path"))
        .args(["--exact", "--nocapture", name])
        .env(INSIDE, "1");
    let said = run(inside, time_max).expect_success("the test in its namespace");
    println!("{said}");
    assert!(said.contains("1 passed"), "the test did not run:\n{said}");
}

/// A command that runs another where it may mount; root needs no user namespace, and may not be allowed one.
fn namespace() -> Option<Command> {
    for options in [&["-m"][..], &["-r", "-m"]] {
        let unshare = || {
            let mut command = Command::new("unshare");
            command.args(options);
            command
        };
        let mut probe = unshare();
        probe.args(["mount", "-t", "tmpfs", "-o", "size=1m", "probe"]);
        probe.arg(std::env::temp_dir());
        if probe.output().is_ok_and(|output| output.status.success()) {
            return Some(unshare());
        }
    }
    missing("a mount namespace (root, or `unshare -rm`)", "a full disk")
}

/// Mounts a disk of so many bytes, and makes the directory if need be.
pub fn mount(at: &Path, bytes: usize) {
    fs::create_dir_all(at).expect("a mount point can be made");
    let mut mount = Command::new("mount");
    mount
        .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "small"])
        .arg(at);
    run(mount, TIME_MAX).expect_success("mounting a small disk");
}

pub fn unmount(at: &Path) {
    let mut unmount = Command::new("umount");
    unmount.arg(at);
    run(unmount, TIME_MAX).expect_success("unmounting the small disk");
}

/// Adds to the ballast, a file, until it is this large or the disk is full.
pub fn ballast(path: &Path, bytes: usize) {
    let mut file = File::options()
        .create(true)
        .append(true)
        .open(path)
        .expect("the ballast can be opened");
    for _ in 0..bytes / PAGE_BYTES {
        match file.write_all(&[7; PAGE_BYTES]) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::StorageFull => return,
            Err(error) => panic!("ballast: {error}"),
        }
    }
}
