//! The coordinators of all partitions of one internal topic that this broker leads.

use super::log::CoordinatorLog;
use super::machine::Machine;
use super::runtime::{self, Clock, EffectSink, Envelope, RuntimeSettings};
use kafka_protocol::error::ResponseError;
use std::collections::HashMap;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::{mpsc, oneshot};

/// Where requests to one partition's coordinator go.
pub type Mailbox<M> = mpsc::Sender<Envelope<M>>;

/// A task for each partition that is led here.
pub struct Coordinators<M: Machine> {
    settings: RuntimeSettings,
    clock: Clock,
    partitions: RwLock<HashMap<i32, Mailbox<M>>>,
    /// Of the topic; ids are spread over so many.
    partition_count: AtomicI32,
}

impl<M: Machine> Coordinators<M> {
    /// Leads no partition yet. The topic will be made with so many partitions, unless it is there.
    pub fn new(settings: RuntimeSettings, clock: Clock, partition_count: i32) -> Self {
        Self {
            partition_count: AtomicI32::new(partition_count),
            settings,
            clock,
            partitions: RwLock::default(),
        }
    }

    /// The topic has so many partitions, whatever the settings say by now: an id must not move while its topic lives.
    pub fn set_partition_count(&self, count: i32) {
        let before = self.partition_count.swap(count, Ordering::Relaxed);
        if before != count {
            tracing::warn!(
                topic = count,
                settings = before,
                "the topic of the {}s has another number of partitions than the settings say; the topic's counts",
                M::NAME
            );
        }
    }

    /// The partition that an id belongs to.
    pub fn partition_for(&self, id: &str) -> i32 {
        partition_for(id, self.partition_count.load(Ordering::Relaxed))
    }

    /// The broker leads this partition from now on: starts its task, which loads the log first.
    /// Must be called within a tokio runtime. A task of an earlier leadership is replaced.
    ///
    /// `effects` makes what is done with effects, given where to send what comes of them.
    pub fn become_leader(
        &self,
        partition: i32,
        log: Arc<dyn CoordinatorLog>,
        machine: M::Settings,
        effects: impl FnOnce(mpsc::WeakSender<Envelope<M>>) -> EffectSink<M>,
    ) {
        let (sender, mailbox) = mpsc::channel(self.settings.mailbox_requests_max.max(1));
        tokio::spawn(runtime::run(
            log,
            machine,
            self.settings.clone(),
            self.clock.clone(),
            effects(sender.downgrade()),
            mailbox,
        ));
        self.partitions
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(partition, sender);
    }

    /// The broker does not lead this partition any more: waiting requests get NOT_COORDINATOR.
    pub fn resign(&self, partition: i32) {
        self.partitions
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&partition);
    }

    /// The coordinators of all partitions that are led here.
    pub fn all(&self) -> Vec<Mailbox<M>> {
        self.partitions
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    /// Asks the coordinator of an id.
    pub async fn ask_for(&self, id: &str, request: M::Request) -> Result<M::Reply, ResponseError> {
        self.ask(self.partition_for(id), request).await
    }

    /// Asks the coordinator of a partition; NOT_COORDINATOR if that is elsewhere.
    pub async fn ask(
        &self,
        partition: i32,
        request: M::Request,
    ) -> Result<M::Reply, ResponseError> {
        let mailbox = self
            .partitions
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&partition)
            .cloned();
        ask(mailbox, request).await
    }
}

/// Asks one coordinator.
pub async fn ask<M: Machine>(
    mailbox: Option<Mailbox<M>>,
    request: M::Request,
) -> Result<M::Reply, ResponseError> {
    let mailbox = mailbox.ok_or(ResponseError::NotCoordinator)?;
    let (answer, reply) = oneshot::channel();
    mailbox
        .send(Envelope { request, answer })
        .await
        .map_err(|_| ResponseError::NotCoordinator)?;
    // Its task ends when nobody can ask it any more.
    drop(mailbox);
    reply.await.map_err(|_| ResponseError::NotCoordinator)?
}

/// The partition of `count` that an id belongs to: the absolute value of Java's `String.hashCode`, modulo the count.
pub fn partition_for(id: &str, count: i32) -> i32 {
    let hash = id.encode_utf16().fold(0i32, |hash, unit| {
        hash.wrapping_mul(31).wrapping_add(i32::from(unit))
    });
    // `Utils.abs`: the one value without a positive counterpart counts as 0.
    hash.checked_abs().unwrap_or(0) % count.max(1)
}
