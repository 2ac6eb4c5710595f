//! The topics whose partitions this broker holds, by name and by id.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use arc_swap::ArcSwap;
use streamgauge_protocol::error::ErrorCode;
use uuid::Uuid;

use crate::config::topic::TopicConfig;
use crate::controller::decide::is_internal;
use crate::shard::handle::PartitionHandle;
use crate::shard::view::PartitionKey;

/// Where a partition is.
#[derive(Clone)]
pub enum Slot {
    /// This broker has a replica.
    Here(PartitionHandle),
    /// Its replicas are on other brokers.
    Elsewhere,
    /// A replica should be here and could not be opened.
    Offline,
    /// As [`Self::Offline`], and it is known that its files are not what was written.
    Damaged,
}

/// A topic with the handles of its partitions.
pub struct TopicHandle {
    pub name: Arc<str>,
    pub topic_id: Uuid,
    config: ArcSwap<TopicConfig>,
    /// By index.
    partitions: ArcSwap<Vec<Slot>>,
}

impl Slot {
    /// Whether there should be a replica here that takes part, and is not. That of a broker alone can be read, whatever has failed.
    fn is_closed(&self) -> bool {
        match self {
            Self::Offline | Self::Damaged => true,
            Self::Here(partition) => {
                partition.view().has_failed() && !partition.view().is_serving()
            }
            Self::Elsewhere => false,
        }
    }
}

impl TopicHandle {
    pub fn new(
        name: Arc<str>,
        topic_id: Uuid,
        config: Arc<TopicConfig>,
        partitions: Vec<Slot>,
    ) -> Self {
        Self {
            name,
            topic_id,
            config: ArcSwap::new(config),
            partitions: ArcSwap::from_pointee(partitions),
        }
    }

    pub fn config(&self) -> Arc<TopicConfig> {
        self.config.load_full()
    }

    pub fn is_internal(&self) -> bool {
        is_internal(&self.name)
    }

    pub fn partition_count(&self) -> i32 {
        i32::try_from(self.partitions.load().len()).unwrap_or(i32::MAX)
    }

    fn slot(&self, index: i32) -> Option<Slot> {
        let at = usize::try_from(index).ok()?;
        self.partitions.load().get(at).cloned()
    }

    /// The partition with that index, if a replica of it is here and open.
    pub fn partition(&self, index: i32) -> Option<PartitionHandle> {
        match self.slot(index)? {
            Slot::Here(partition) => Some(partition),
            Slot::Elsewhere | Slot::Offline | Slot::Damaged => None,
        }
    }

    /// The partition with that index, or the error that a client is told.
    pub fn open_partition(&self, index: i32) -> Result<PartitionHandle, ErrorCode> {
        match self.slot(index) {
            Some(Slot::Here(partition)) => Ok(partition),
            Some(Slot::Elsewhere) => Err(ErrorCode::NotLeaderOrFollower),
            Some(Slot::Offline | Slot::Damaged) => Err(ErrorCode::KafkaStorageError),
            None => Err(ErrorCode::UnknownTopicOrPartition),
        }
    }

    /// The partitions that have a replica here.
    pub fn handles(&self) -> Vec<PartitionHandle> {
        self.partitions
            .load()
            .iter()
            .filter_map(|slot| match slot {
                Slot::Here(partition) => Some(partition.clone()),
                Slot::Elsewhere | Slot::Offline | Slot::Damaged => None,
            })
            .collect()
    }

    /// The partitions whose replica here is damaged.
    pub fn damaged(&self) -> Vec<i32> {
        let partitions = self.partitions.load();
        let damaged = (0..).zip(partitions.iter());
        damaged
            .filter(|(_, slot)| match slot {
                Slot::Here(partition) => partition.view().is_damaged(),
                Slot::Damaged => true,
                Slot::Elsewhere | Slot::Offline => false,
            })
            .map(|(index, _)| index)
            .collect()
    }

    /// The partitions that could not be opened here, and may be another time.
    pub fn offline(&self) -> Vec<i32> {
        let partitions = self.partitions.load();
        let offline = (0..).zip(partitions.iter());
        offline
            .filter(|(_, slot)| matches!(slot, Slot::Offline))
            .map(|(index, _)| index)
            .collect()
    }

    /// The partitions whose replica here is not open.
    fn closed(&self) -> Vec<PartitionKey> {
        let partitions = self.partitions.load();
        let closed = (0..).zip(partitions.iter());
        closed
            .filter(|(_, slot)| slot.is_closed())
            .map(|(index, _)| PartitionKey {
                topic_id: self.topic_id,
                index,
            })
            .collect()
    }

    /// Whether the replica here of that partition is not open.
    pub fn is_closed(&self, index: i32) -> bool {
        self.slot(index).is_some_and(|slot| slot.is_closed())
    }

    /// A replica of that partition has come or gone.
    pub fn set_slot(&self, index: i32, slot: Slot) {
        let mut all = self.partitions.load().as_ref().clone();
        if let Some(at) = usize::try_from(index).ok().and_then(|at| all.get_mut(at)) {
            *at = slot;
            self.partitions.store(Arc::new(all));
        }
    }

    pub fn add_partitions(&self, added: Vec<Slot>) {
        let mut all = self.partitions.load().as_ref().clone();
        all.extend(added);
        self.partitions.store(Arc::new(all));
    }

    pub fn configure(&self, config: Arc<TopicConfig>) {
        self.config.store(Arc::clone(&config));
        for partition in self.handles() {
            partition.configure(Arc::clone(&config));
        }
    }
}

#[derive(Default)]
struct Maps {
    by_name: HashMap<Arc<str>, Arc<TopicHandle>>,
    by_id: HashMap<Uuid, Arc<TopicHandle>>,
}

/// Finds topics. Written by the controller only, after the metadata log says so.
#[derive(Default)]
pub struct TopicRegistry {
    maps: RwLock<Maps>,
}

impl TopicRegistry {
    pub fn by_name(&self, name: &str) -> Option<Arc<TopicHandle>> {
        self.read(|maps| maps.by_name.get(name).cloned())
    }

    pub fn by_id(&self, topic_id: Uuid) -> Option<Arc<TopicHandle>> {
        self.read(|maps| maps.by_id.get(&topic_id).cloned())
    }

    pub fn all(&self) -> Vec<Arc<TopicHandle>> {
        self.read(|maps| maps.by_id.values().cloned().collect())
    }

    /// The replicas that should be here and could not be opened, or are not what was written.
    pub fn offline(&self) -> Vec<PartitionKey> {
        self.read(|maps| {
            let topics = maps.by_id.values();
            topics.flat_map(|topic| topic.closed()).collect()
        })
    }

    pub fn insert(&self, topic: Arc<TopicHandle>) {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        maps.by_id.insert(topic.topic_id, Arc::clone(&topic));
        maps.by_name.insert(Arc::clone(&topic.name), topic);
    }

    pub fn remove(&self, topic_id: Uuid) -> Option<Arc<TopicHandle>> {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        let topic = maps.by_id.remove(&topic_id)?;
        maps.by_name.remove(&topic.name);
        Some(topic)
    }

    fn read<T>(&self, look: impl FnOnce(&Maps) -> T) -> T {
        look(&self.maps.read().unwrap_or_else(PoisonError::into_inner))
    }
}
