//! The runtime over a cluster in memory, under a clock that the tests move: through crashes at any point every record is in one result,
//! late once or a dead letter once.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use streamgauge_aggregator::merge::MergerConfig;
use streamgauge_protocol::batch::{BatchBuilder, RecordView};
use streamgauge_protocol::compression::Compression;
use tokio::sync::watch;

use super::log::JobLog;
use super::memory::MemoryCluster;
use super::status::{JobState, StatusRegistry};
use super::{CheckpointPolicy, JobsConfig, internal_topic, supervise};

pub(super) const BASE_MS: i64 = 1_760_000_000_000;
const WINDOW_MS: i64 = 1000;

pub(super) const DECLARATION: &str = "\
topic: sums
from: { topic: events }
time: { field: t, unit: ms, max_out_of_orderness: 300ms }
where: k <> 'skip'
group_by: [k]
window: { tumbling: 1s }
aggregate: { n: count(*), s: sum(v) }
late: { topic: sums-late }
dead_letter: { topic: sums-dead }
";

/// Steps of a pseudo-random sequence (splitmix64).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// Sources, what was put into them, and what must come out.
pub(super) struct World {
    pub(super) cluster: Arc<MemoryCluster>,
    pub(super) random: Random,
    pub(super) time_ms: i64,
    pub(super) policy: CheckpointPolicy,
    /// A second broker takes the job for its own, too.
    has_rival: bool,
}

impl World {
    pub(super) fn new(seed: u64, sources: usize, derived: usize) -> World {
        let cluster = MemoryCluster::new();
        cluster.create("events", sources, None);
        cluster.create("sums", derived, Some(DECLARATION));
        World {
            cluster,
            random: Random(seed),
            time_ms: BASE_MS,
            policy: CheckpointPolicy {
                applied_bytes: 600,
                interval_ms: 5000,
            },
            has_rival: false,
        }
    }

    /// Puts a batch into a source: some disorder, some late records, some that cannot be read, some filtered out.
    pub(super) fn produce(&mut self) {
        let logs = self.cluster.partitions("events");
        let mut builder = BatchBuilder::new();
        for _ in 0..1 + self.random.below(8) {
            self.time_ms += self.random.below(60) as i64;
            let back = match self.random.below(12) {
                0 => self.random.below(4000),
                _ => self.random.below(250),
            };
            let key = ["a", "b", "c", "d", "skip"][self.random.below(5) as usize];
            let text = match self.random.below(25) {
                0 => "{".to_owned(),
                _ => format!(
                    "{{\"t\":{},\"k\":\"{key}\",\"v\":{}}}",
                    self.time_ms - back as i64,
                    self.random.below(100)
                ),
            };
            builder.push(self.time_ms, None, Some(text.as_bytes()), &[]);
        }
        let at = self.random.below(logs.len() as u64) as usize;
        logs[at].append_committed(builder.build().unwrap());
    }

    /// Ends every source with a record that closes all windows.
    pub(super) fn close(&mut self) {
        let time_ms = self.time_ms + 100_000;
        for log in self.cluster.partitions("events") {
            let text = format!("{{\"t\":{time_ms},\"k\":\"skip\",\"v\":0}}");
            let record = BatchBuilder::new().record(time_ms, None, Some(text.as_bytes()));
            log.append_committed(record.build().unwrap());
        }
        self.time_ms = time_ms;
    }

    /// One life of the broker: the runtime runs beside `scenario` and is dropped when that ends.
    fn live<T, F: Future<Output = T>>(
        &self,
        scenario: impl FnOnce(
            Arc<StatusRegistry>,
            Arc<watch::Sender<bool>>,
            tokio::task::JoinHandle<()>,
        ) -> F,
    ) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let began = tokio::time::Instant::now();
            let config = JobsConfig {
                broker_id: 1,
                flush_interval_ms: 20,
                checkpoints: self.policy,
                merger: MergerConfig::default(),
                clock: Arc::new(move || BASE_MS + began.elapsed().as_millis() as i64),
            };
            let statuses = Arc::new(StatusRegistry::default());
            let (stop, stopped) = watch::channel(false);
            let stop = Arc::new(stop);
            let cluster = Arc::clone(&self.cluster);
            if self.has_rival {
                let config = JobsConfig {
                    broker_id: 2,
                    ..config.clone()
                };
                let statuses = Arc::new(StatusRegistry::default());
                let (cluster, stopped) = (Arc::clone(&cluster), stopped.clone());
                tokio::spawn(supervise(cluster, config, statuses, stopped));
            }
            let supervisor =
                tokio::spawn(supervise(cluster, config, Arc::clone(&statuses), stopped));
            scenario(statuses, Arc::clone(&stop), supervisor).await
        })
    }

    /// Lets the runtime come to the end of everything and stops it.
    fn finish(&mut self) {
        self.cluster.crash.arm_failure(0);
        self.close();
        let target = self.time_ms - 300 - 1;
        let partitions = self.cluster.partitions("sums").len();
        self.live(|statuses, stop, supervisor| async move {
            wait_until(
                || {
                    let Some(job) = statuses.job("sums") else {
                        return false;
                    };
                    job.merges.len() == partitions
                        && job
                            .merges
                            .values()
                            .all(|merge| merge.watermark_ms == target && merge.lag == 0)
                },
                &statuses,
            )
            .await;
            stop.send_replace(true);
            supervisor.await.unwrap();
        });
    }

    /// Every result, late record and dead letter against a recomputation from the sources.
    pub(super) fn check(&self) {
        let late = self.places("sums-late");
        let dead = self.places("sums-dead");
        let mut expected: BTreeMap<(i64, String), (i64, i64)> = BTreeMap::new();
        let mut bad = BTreeSet::new();
        for (partition, log) in self.cluster.partitions("events").iter().enumerate() {
            for record in log.records() {
                let place = (partition.to_string(), record.offset.to_string());
                let Ok(value) = serde_json::from_slice::<Value>(&record.value.unwrap()) else {
                    bad.insert(place);
                    continue;
                };
                let key = value["k"].as_str().unwrap().to_owned();
                if key == "skip" || late.contains(&place) {
                    continue;
                }
                let window = value["t"].as_i64().unwrap().div_euclid(WINDOW_MS);
                let sums = expected.entry((window, key)).or_default();
                sums.0 += 1;
                sums.1 += value["v"].as_i64().unwrap();
            }
        }
        assert_eq!(dead, bad, "dead letters");
        let mut found = BTreeMap::new();
        for log in self.cluster.partitions("sums") {
            for record in log.records() {
                let value: Value = serde_json::from_slice(&record.value.unwrap()).unwrap();
                let window = record.timestamp.div_euclid(WINDOW_MS);
                let key = value["k"].as_str().unwrap().to_owned();
                let sums = (value["n"].as_i64().unwrap(), value["s"].as_i64().unwrap());
                assert_eq!(
                    found.insert((window, key), sums),
                    None,
                    "a result twice: {value}"
                );
            }
        }
        assert_eq!(found, expected);
    }

    /// Where the records of a side topic came from; each but once.
    fn places(&self, topic: &str) -> BTreeSet<(String, String)> {
        let mut places = BTreeSet::new();
        for record in self
            .cluster
            .partitions(topic)
            .iter()
            .flat_map(|log| log.records())
        {
            let place = (
                header(&record, "streamgauge.source.partition"),
                header(&record, "streamgauge.source.offset"),
            );
            assert!(!header(&record, "streamgauge.reason").is_empty());
            assert!(places.insert(place.clone()), "{topic}: {place:?} twice");
        }
        places
    }
}

fn header(record: &RecordView, name: &str) -> String {
    let found = record.headers.iter().find(|header| header.key == name);
    let value = found
        .and_then(|header| header.value.clone())
        .unwrap_or_default();
    String::from_utf8(value.to_vec()).unwrap()
}

/// Moves the clock until it is so.
async fn wait_until(mut so: impl FnMut() -> bool, statuses: &StatusRegistry) {
    for _ in 0..20_000 {
        if so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it does not come to that: {:#?}", statuses.all());
}

#[test]
fn results_are_exact_through_crashes_at_any_point() {
    // More histories than a quick run has time for: JOBS_SEEDS=5000.
    let seeds = std::env::var("JOBS_SEEDS").ok();
    for seed in 0..seeds.map_or(60, |seeds| seeds.parse().unwrap()) {
        let mut world = World::new(seed, 1 + seed as usize % 3, 1 + seed as usize / 3 % 3);
        for _ in 0..12 {
            for _ in 0..world.random.below(6) {
                world.produce();
            }
            let appends = 1 + world.random.below(30) as i64;
            let time = Duration::from_millis(world.random.below(3000));
            world.cluster.crash.arm(appends);
            let refused = world.random.below(40) as i64;
            world.cluster.crash.arm_failure(refused);
            world.live(|_, _, _| async {
                tokio::select! {
                    () = world.cluster.crash.reached.notified() => {}
                    () = tokio::time::sleep(time) => {}
                }
            });
            let cluster = Arc::clone(&world.cluster);
            let random = &mut world.random;
            cluster.crash(|| random.below(4) as usize);
        }
        world.finish();
        world.check();
    }
}

/// A leader that was deposed and does not know it yet, or one that takes long to stop.
#[test]
fn results_are_exact_while_two_brokers_run_one_job() {
    let seeds = std::env::var("JOBS_SEEDS").ok();
    for seed in 0..seeds.map_or(60, |seeds| seeds.parse().unwrap()) {
        let mut world = World::new(seed, 1 + seed as usize % 3, 1 + seed as usize / 3 % 3);
        for _ in 0..8 {
            for _ in 0..world.random.below(6) {
                world.produce();
            }
            world.cluster.crash.arm(1 + world.random.below(60) as i64);
            let refused = world.random.below(80) as i64;
            world.cluster.crash.arm_failure(refused);
            world.has_rival = world.random.below(3) > 0;
            let time = Duration::from_millis(world.random.below(6000));
            world.live(|_, _, _| async {
                tokio::select! {
                    () = world.cluster.crash.reached.notified() => {}
                    () = tokio::time::sleep(time) => {}
                }
            });
            let cluster = Arc::clone(&world.cluster);
            let random = &mut world.random;
            cluster.crash(|| random.below(4) as usize);
        }
        world.has_rival = false;
        world.finish();
        world.check();
    }
}

#[test]
fn a_batch_that_unpacks_to_as_much_as_produce_allows_does_not_stop_a_job() {
    let mut world = World::new(8, 1, 1);
    world.produce();
    let mut text = format!("{{\"t\":{BASE_MS},\"k\":\"a\",\"v\":1}}").into_bytes();
    text.resize(70 << 20, b' ');
    let builder = BatchBuilder::new().compression(Compression::Zstd);
    let batch = builder.record(BASE_MS, None, Some(&text)).build().unwrap();
    world.cluster.partition("events", 0).append_committed(batch);
    world.finish();
    world.check();
}

#[test]
fn an_orderly_stop_leaves_a_checkpoint_that_the_next_start_goes_on_from() {
    let mut world = World::new(7, 2, 2);
    world.policy = CheckpointPolicy::default();
    for _ in 0..3 {
        for _ in 0..20 {
            world.produce();
        }
        world.finish();
        for log in world.cluster.partitions(&internal_topic("sums")) {
            assert!(log.start_offset() > 0);
        }
    }
    world.check();
}

#[test]
fn outputs_are_not_doubled_when_the_partitions_have_forgotten_the_producer() {
    let mut world = World::new(11, 2, 2);
    for _ in 0..5 {
        for _ in 0..10 {
            world.produce();
        }
        world.live(|_, _, _| tokio::time::sleep(Duration::from_millis(900)));
        world.cluster.crash(|| 1);
        for topic in ["sums", "sums-late", "sums-dead"] {
            for log in world.cluster.partitions(topic) {
                log.forget_producers();
            }
        }
    }
    world.finish();
    world.check();
}

#[test]
fn a_source_may_come_late_and_may_grow() {
    let cluster = MemoryCluster::new();
    cluster.create("sums", 2, Some(DECLARATION));
    let mut world = World {
        cluster: Arc::clone(&cluster),
        ..World::new(3, 1, 1)
    };
    world.live(|statuses, _, _| async move {
        wait_until(
            || {
                statuses
                    .job("sums")
                    .is_some_and(|job| job.state == JobState::Waiting)
            },
            &statuses,
        )
        .await;
        let reason = statuses.job("sums").unwrap().reason.unwrap();
        assert!(reason.contains("'events'"), "{reason}");
        cluster.create("events", 1, None);
        wait_until(
            || {
                statuses
                    .job("sums")
                    .is_some_and(|job| job.state == JobState::Running)
            },
            &statuses,
        )
        .await;
        cluster.grow("events", 3);
        wait_until(
            || {
                statuses
                    .job("sums")
                    .is_some_and(|job| job.sources.len() == 3)
            },
            &statuses,
        )
        .await;
    });
    world.cluster.crash(|| 0);
    for _ in 0..20 {
        world.produce();
    }
    world.finish();
    world.check();
}

#[test]
fn a_compatible_change_takes_effect_without_loss() {
    let mut world = World::new(5, 2, 2);
    for round in 0..6 {
        for _ in 0..10 {
            world.produce();
        }
        let cluster = Arc::clone(&world.cluster);
        world.live(|_, _, _| async move {
            tokio::time::sleep(Duration::from_millis(150)).await;
            cluster.alter(
                "sums",
                &DECLARATION.replace("300ms", &format!("{}ms", 300 + round)),
            );
            tokio::time::sleep(Duration::from_millis(150)).await;
        });
        world.cluster.crash(|| 1);
    }
    world.cluster.alter("sums", DECLARATION);
    world.finish();
    world.check();
}

#[test]
fn a_deleted_topic_takes_its_internal_topic_along_and_begins_anew_when_created_again() {
    let mut world = World::new(9, 1, 1);
    for _ in 0..10 {
        world.produce();
    }
    world.finish();
    let cluster = Arc::clone(&world.cluster);
    let internal = internal_topic("sums");
    // The broker was down when the topic was deleted and created again.
    cluster.delete("sums");
    cluster.delete("sums-late");
    cluster.delete("sums-dead");
    cluster.create("sums", 1, Some(DECLARATION));
    world.finish();
    world.check();
    world.live(|statuses, _, _| async move {
        wait_until(
            || {
                statuses
                    .job("sums")
                    .is_some_and(|job| job.state == JobState::Running)
            },
            &statuses,
        )
        .await;
        cluster.delete("sums");
        wait_until(|| !cluster.names().contains(&internal), &statuses).await;
        assert_eq!(statuses.all(), []);
    });
}

#[test]
fn a_source_that_was_created_again_stops_the_job_with_a_reason() {
    let mut world = World::new(2, 1, 1);
    world.produce();
    let cluster = Arc::clone(&world.cluster);
    world.live(|statuses, _, _| async move {
        wait_until(
            || {
                statuses
                    .job("sums")
                    .is_some_and(|job| !job.merges.is_empty())
            },
            &statuses,
        )
        .await;
        cluster.delete("events");
        wait_until(
            || {
                statuses
                    .job("sums")
                    .is_some_and(|job| job.state == JobState::Waiting)
            },
            &statuses,
        )
        .await;
        cluster.create("events", 1, None);
        wait_until(
            || {
                statuses
                    .job("sums")
                    .is_some_and(|job| job.state == JobState::Failed)
            },
            &statuses,
        )
        .await;
        let reason = statuses.job("sums").unwrap().reason.unwrap();
        assert!(reason.contains("created again"), "{reason}");
    });
}

#[test]
fn a_result_is_there_soon_after_the_record_that_closes_its_window() {
    let mut world = World::new(4, 2, 1);
    for _ in 0..10 {
        world.produce();
    }
    let cluster = Arc::clone(&world.cluster);
    let waited = world.live(|statuses, _, _| async move {
        wait_until(
            || {
                statuses.job("sums").is_some_and(|job| {
                    job.sources.len() == 2 && job.sources.values().all(|source| source.lag == 0)
                })
            },
            &statuses,
        )
        .await;
        let before = cluster.partition("sums", 0).high_watermark();
        let time_ms = BASE_MS + 1_000_000;
        for log in cluster.partitions("events") {
            let text = format!("{{\"t\":{time_ms},\"k\":\"skip\",\"v\":0}}");
            log.append_committed(
                BatchBuilder::new()
                    .record(time_ms, None, Some(text.as_bytes()))
                    .build()
                    .unwrap(),
            );
        }
        let began = tokio::time::Instant::now();
        wait_until(
            || cluster.partition("sums", 0).high_watermark() > before,
            &statuses,
        )
        .await;
        began.elapsed()
    });
    assert!(waited < Duration::from_millis(50), "{waited:?}");
}
