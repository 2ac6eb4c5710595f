//! What the group coordinator asks the cluster's metadata.

use crate::controller::Controller;
use uuid::Uuid;

/// Topics by name and by id.
pub trait TopicLookup: Send + Sync + 'static {
    /// The topic's id, `None` if there is no such topic.
    fn topic_id(&self, name: &str) -> Option<Uuid>;
    /// The topic's name, `None` if no topic has this id.
    fn topic_name(&self, id: Uuid) -> Option<String>;
    /// How many partitions the topic has, `None` if there is no such topic.
    fn partition_count(&self, name: &str) -> Option<i32>;
}

/// The image of the cluster as the coordinator asks it.
pub struct ImageLookup(pub Controller);

impl TopicLookup for ImageLookup {
    fn topic_id(&self, name: &str) -> Option<Uuid> {
        self.0
            .read(|image| image.topic(name).map(|topic| topic.topic_id))
    }

    fn topic_name(&self, id: Uuid) -> Option<String> {
        self.0
            .read(|image| image.topic_by_id(id).map(|topic| topic.name.clone()))
    }

    fn partition_count(&self, name: &str) -> Option<i32> {
        self.0.read(|image| {
            let topic = image.topic(name)?;
            i32::try_from(topic.partitions.len()).ok()
        })
    }
}
