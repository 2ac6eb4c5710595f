//! The clients that others wrote: fetched once, kept in a cache, used by every test.
//!
//! Versions are pinned in `clients/java/pom.xml` and `clients/python/requirements.txt`. A cached set is used again as long
//! as its pin has not changed. A runtime that is missing on this machine is said loudly and fails the test under `CI`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use crate::process::run;

/// The first fetch goes over the network and may be slow.
const FETCH_TIME_MAX: Duration = Duration::from_secs(600);

/// Options that make a short-lived JVM start fast.
const JAVA_OPTIONS: [&str; 5] = [
    "-XX:TieredStopAtLevel=1",
    "-XX:+UseSerialGC",
    "-Xshare:auto",
    "-Xmx512m",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
];

/// `java` with Apache Kafka's jars on its class path; the main class (or a `.java` file) comes next.
pub fn java() -> Option<Command> {
    Some(java_with(&kafka_jars()?))
}

/// `java` with the clients of an earlier version of Apache Kafka on its class path.
pub fn java_of(version: &str) -> Option<Command> {
    let pom = clients_dir().join("java/earlier/pom.xml");
    let version_setting = format!("-Dkafka.version={version}");
    let jars = maven(
        &format!("kafka-clients-{version}"),
        &pom,
        &[&version_setting],
    )?;
    Some(java_with(&jars))
}

fn java_with(jars: &Path) -> Command {
    let class_path = jars.join("*");
    let level = std::env::var("STREAMGAUGE_TEST_JAVA_LOG");
    let level = level.as_deref().unwrap_or("error");
    let mut command = Command::new("java");
    command
        .args(JAVA_OPTIONS)
        .arg(format!("-Dorg.slf4j.simpleLogger.defaultLogLevel={level}"))
        .arg("-cp")
        .arg(class_path);
    command
}

/// The directory with Apache Kafka's jars: broker, clients and tools.
pub fn kafka_jars() -> Option<PathBuf> {
    maven("kafka", &clients_dir().join("java/pom.xml"), &[])
}

/// The directory with the jars that a list names.
fn maven(name: &str, pom: &Path, settings: &[&str]) -> Option<PathBuf> {
    if !on_path("java") || !on_path("mvn") {
        return missing(
            "Java 17 and Maven",
            "Apache Kafka's own clients, tools and broker",
        );
    }
    Some(cached(name, pom, |into| {
        let mut maven = Command::new("mvn");
        maven
            .args(["-q", "-B", "-f"])
            .arg(pom)
            .args(settings)
            .arg("dependency:copy-dependencies");
        maven.arg(format!("-DoutputDirectory={}", into.display()));
        run(maven, FETCH_TIME_MAX).expect_success("fetching Apache Kafka with Maven");
    }))
}

/// A Python with confluent-kafka (librdkafka) and kafka-python.
pub fn python() -> Option<PathBuf> {
    if !on_path("python3") {
        return missing("Python 3", "librdkafka's and kafka-python's clients");
    }
    let requirements = clients_dir().join("python/requirements.txt");
    let environment = cached("python", &requirements, |into| {
        let mut venv = Command::new("python3");
        venv.args(["-m", "venv"]).arg(into);
        run(venv, FETCH_TIME_MAX).expect_success("making a Python environment");
        let mut pip = Command::new(into.join("bin/python"));
        pip.args([
            "-m",
            "pip",
            "install",
            "-q",
            "--disable-pip-version-check",
            "--only-binary",
            ":all:",
            "-r",
        ])
        .arg(&requirements);
        run(pip, FETCH_TIME_MAX).expect_success("fetching the Python clients");
    });
    Some(environment.join("bin/python"))
}

/// The `kcat` program, which only a system package gives.
pub fn kcat() -> Option<&'static str> {
    ["kcat", "kafkacat"]
        .into_iter()
        .find(|name| on_path(name))
        .or_else(|| missing("kcat", "the kcat test"))
}

/// Where the sources of the client programs are.
pub fn clients_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients")
}

/// The build directory of the workspace, found from the running test (`<target>/<profile>/deps/<test>`).
pub fn target_dir() -> PathBuf {
    profile_dir()
        .parent()
        .expect("a profile lies in a target directory")
        .to_owned()
}

/// The directory of the profile that the running test was built with.
pub fn profile_dir() -> PathBuf {
    let test = std::env::current_exe().expect("a running program has a path");
    let deps = test.parent().expect("a program lies in a directory");
    deps.parent()
        .expect("test binaries lie in deps/")
        .to_owned()
}

/// Says that something a test needs is missing; fails under `CI`, skips elsewhere.
pub fn missing<T>(runtime: &str, needed_by: &str) -> Option<T> {
    assert!(
        std::env::var_os("CI").is_none(),
        "{runtime} is missing, and {needed_by} need it"
    );
    eprintln!(
        "\n!!! SKIPPED: {runtime} is missing on this machine, so {needed_by} were not tested !!!\n"
    );
    None
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// A directory filled once for a given pin file; other processes wait for the one that fills it.
fn cached(name: &str, pin: &Path, fill: impl FnOnce(&Path)) -> PathBuf {
    let cache = std::env::var_os("STREAMGAUGE_TEST_CACHE")
        .map_or_else(|| target_dir().join("e2e-cache"), PathBuf::from);
    fs::create_dir_all(&cache).expect("the cache directory can be made");
    let lock = File::create(cache.join(format!("{name}.lock"))).expect("the lock file can be made");
    flock(&lock, FlockOperation::LockExclusive).expect("the lock file can be locked");
    let (directory, stamp) = (cache.join(name), cache.join(format!("{name}.pin")));
    let wanted = fs::read(pin).expect("the pin file can be read");
    if fs::read(&stamp).is_ok_and(|have| have == wanted) {
        return directory;
    }
    let _ = fs::remove_dir_all(&directory);
    fill(&directory);
    fs::write(&stamp, wanted).expect("the stamp can be written");
    directory
}
