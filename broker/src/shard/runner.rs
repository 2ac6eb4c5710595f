//! The thread of a shard and the pool that syncs for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use streamgauge_storage::StorageError;
use streamgauge_storage::disk::Disk;
use streamgauge_storage::log::SyncTicket;

use super::core::{Shard, ShardSettings};
use super::event::{Effect, Event, GroupMessage};
use super::handle::ShardHandle;
use crate::clock;
use crate::replication::hibernation::Mark;

/// How often a shard looks at the clock.
const TICK: Duration = Duration::from_millis(100);

/// Most events that one turn takes before it writes: bounds how long the first one waits.
const EVENTS_PER_TURN_MAX: usize = 1024;

/// Files synced at the same time. Syncs of different files overlap in the device and the journal;
/// beyond a few threads nothing is gained.
const SYNC_THREADS: usize = 8;

/// Carries messages to other brokers. Must not block; what it cannot carry it drops and reports.
pub trait Outbound: Send + Sync {
    fn send(&self, to: i32, messages: Vec<GroupMessage>);

    /// The shard lives.
    fn pulse(&self, to: i32, mark: Mark);
}

/// Starts a shard's thread.
pub fn start(
    settings: ShardSettings,
    disk: Arc<dyn Disk>,
    syncs: &SyncPool,
    outbound: Arc<dyn Outbound>,
    number: usize,
) -> Result<(ShardHandle, JoinHandle<()>), StorageError> {
    let shard = Shard::open(settings, disk, clock::now_ms())?;
    let (mailbox, events) = unbounded();
    let handle = ShardHandle::new(mailbox.clone());
    let syncs = syncs.clone();
    let thread = std::thread::Builder::new()
        .name(format!("shard-{number}"))
        .spawn(move || run(shard, &events, &mailbox, &syncs, &*outbound))
        .map_err(StorageError::from)?;
    Ok((handle, thread))
}

fn run(
    mut shard: Shard,
    events: &Receiver<Event>,
    mailbox: &Sender<Event>,
    syncs: &SyncPool,
    outbound: &dyn Outbound,
) {
    let mut next_tick = Instant::now() + TICK;
    loop {
        let first = match events.recv_deadline(next_tick) {
            Ok(event) => Some(event),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let now_ms = clock::now_ms();
        let mut closing = false;
        for event in first
            .into_iter()
            .chain(events.try_iter().take(EVENTS_PER_TURN_MAX))
        {
            closing |= matches!(event, Event::Close { .. });
            shard.handle(event, now_ms);
        }
        if closing {
            return;
        }
        if Instant::now() >= next_tick {
            next_tick = Instant::now() + TICK;
            shard.handle(Event::Tick, now_ms);
        }
        let mut effect = shard.flush(now_ms);
        send_all(&mut shard, outbound);
        while let Some(Effect::Sync { round, tickets }) = effect.take() {
            // With other replicas about, a slow sync here would hold up heartbeats.
            if tickets.len() > 1 || shard.has_peers() {
                syncs.submit(round, tickets, mailbox.clone());
                break;
            }
            // One file: syncing it here spares two thread switches. What arrives meanwhile waits
            // in the mailbox and becomes the next round, as it would anyhow.
            let result = tickets
                .iter()
                .try_for_each(SyncTicket::run)
                .map_err(|error| error.to_string());
            shard.handle(Event::Synced { round, result }, clock::now_ms());
            effect = shard.flush(clock::now_ms());
            send_all(&mut shard, outbound);
        }
    }
}

/// Hands the shard's messages on, those for one broker together.
fn send_all(shard: &mut Shard, outbound: &dyn Outbound) {
    let mut by_broker: Vec<(i32, Vec<GroupMessage>)> = Vec::new();
    for (to, message) in shard.take_outbox() {
        match by_broker.iter_mut().find(|(broker, _)| *broker == to) {
            Some((_, messages)) => messages.push(message),
            None => by_broker.push((to, vec![message])),
        }
    }
    for (to, messages) in by_broker {
        outbound.send(to, messages);
    }
    for (to, mark) in shard.take_pulses() {
        outbound.pulse(to, mark);
    }
}

/// Threads that sync files. A round's files are shared out among them, and the last to finish
/// tells the shard.
#[derive(Clone)]
pub struct SyncPool {
    jobs: Sender<SyncJob>,
}

struct SyncJob {
    ticket: SyncTicket,
    round: Arc<RoundUnderWay>,
}

struct RoundUnderWay {
    number: u64,
    left: AtomicUsize,
    error: Mutex<Option<String>>,
    mailbox: Sender<Event>,
}

impl SyncPool {
    /// Starts the threads; they end when the last handle is dropped.
    pub fn start() -> std::io::Result<Self> {
        let (jobs, queue) = unbounded::<SyncJob>();
        for number in 0..SYNC_THREADS {
            let queue = queue.clone();
            std::thread::Builder::new()
                .name(format!("sync-{number}"))
                .spawn(move || queue.iter().for_each(run_sync))?;
        }
        Ok(Self { jobs })
    }

    fn submit(&self, number: u64, tickets: Vec<SyncTicket>, mailbox: Sender<Event>) {
        let round = Arc::new(RoundUnderWay {
            number,
            left: AtomicUsize::new(tickets.len()),
            error: Mutex::new(None),
            mailbox,
        });
        for ticket in tickets {
            let job = SyncJob {
                ticket,
                round: Arc::clone(&round),
            };
            // The threads live as long as this sender does.
            drop(self.jobs.send(job));
        }
    }
}

fn run_sync(job: SyncJob) {
    let SyncJob { ticket, round } = job;
    if let Err(error) = ticket.run() {
        *round.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
    }
    if round.left.fetch_sub(1, Ordering::AcqRel) == 1 {
        let error = round
            .error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let event = Event::Synced {
            round: round.number,
            result: error.map_or(Ok(()), Err),
        };
        drop(round.mailbox.send(event));
    }
}
