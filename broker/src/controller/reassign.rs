//! What the controller decides about reassignments; the rules are those of Kafka's
//! `ReplicationControlManager.alterPartitionReassignments`.

use streamgauge_protocol::error::ErrorCode;
use uuid::Uuid;

use super::decide::{Placement, Refusal, check_replicas};
use super::image::Image;
use super::record::MetadataRecord;

/// What is asked for one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    pub topic: String,
    pub partition: i32,
    /// `None` cancels the move that is under way.
    pub target: Option<Vec<i32>>,
}

/// Decides about one partition.
pub fn alter(
    image: &Image,
    placement: &Placement,
    wish: &Wish,
    may_change_factor: bool,
) -> Result<Vec<MetadataRecord>, Refusal> {
    let topic = image.topic(&wish.topic).ok_or_else(|| {
        Refusal::new(
            ErrorCode::UnknownTopicOrPartition,
            format!("Unable to find a topic named {}.", wish.topic),
        )
    })?;
    let at = usize::try_from(wish.partition).ok();
    let replicas = at.and_then(|at| topic.partitions.get(at)).ok_or_else(|| {
        let message = format!(
            "Unable to find partition {}:{}.",
            wish.topic, wish.partition
        );
        Refusal::new(ErrorCode::UnknownTopicOrPartition, message)
    })?;
    let moving = topic.reassignment(wish.partition);
    let (topic_id, partition) = (topic.topic_id, wish.partition);
    let begin = |target| MetadataRecord::PartitionReassigning {
        topic_id,
        partition,
        target,
        then: None,
    };
    let Some(target) = &wish.target else {
        return match moving.filter(|_| topic.is_reassigning(partition)) {
            Some(moving) => Ok(vec![begin(moving.previous.clone())]),
            None => Err(Refusal::new(
                ErrorCode::NoReassignmentInProgress,
                "No partition reassignment is in progress.",
            )),
        };
    };
    check_replicas(placement, target)?;
    let factor = moving.map_or(replicas.len(), |moving| moving.previous.len());
    if !may_change_factor && target.len() != factor {
        return Err(Refusal::new(
            ErrorCode::InvalidReplicationFactor,
            format!(
                "The replication factor is changed from {factor} to {}",
                target.len()
            ),
        ));
    }
    let current = moving.map_or(replicas, |moving| &moving.target);
    if current == target {
        return Ok(Vec::new());
    }
    Ok(vec![begin(target.clone())])
}

/// Decides about a group that has the members of the assignment with that epoch.
pub fn settled(image: &Image, topic_id: Uuid, partition: i32, epoch: u64) -> Vec<MetadataRecord> {
    let topic = image.topic_by_id(topic_id);
    let Some(topic) = topic.filter(|topic| topic.target(partition).0 == epoch) else {
        return Vec::new();
    };
    let Some(moving) = topic.reassignment(partition) else {
        return Vec::new();
    };
    let done = MetadataRecord::PartitionReassigned {
        topic_id,
        partition,
        epoch,
    };
    let next = moving
        .then
        .clone()
        .map(|target| MetadataRecord::PartitionReassigning {
            topic_id,
            partition,
            target,
            then: None,
        });
    std::iter::once(done).chain(next).collect()
}

/// Decides about a replica whose files are damaged. What it promised by vote and acknowledgement it has
/// forgotten in part, so it must not pass for its former self: the group goes on without it, which takes a majority
/// that holds all that is committed, and then takes it as a new one. One that was just being taken in is begun anew: it would never
/// catch up, and the move not end. The last replica stays as it is.
pub fn replace(image: &Image, topic_id: Uuid, partition: i32, broker: i32) -> Vec<MetadataRecord> {
    let Some(topic) = image.topic_by_id(topic_id) else {
        return Vec::new();
    };
    let (_, wanted) = topic.target(partition);
    let others: Vec<i32> = wanted.iter().copied().filter(|id| *id != broker).collect();
    let is_wanted = others.len() < wanted.len();
    if !is_wanted || others.is_empty() {
        return Vec::new();
    }
    // What a move that is under way would go on to is still where it ends.
    let moving = topic.reassignment(partition);
    let end = moving.and_then(|moving| moving.then.clone());
    vec![MetadataRecord::PartitionReassigning {
        topic_id,
        partition,
        target: others,
        then: Some(end.unwrap_or_else(|| wanted.to_vec())),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Image {
        let mut image = Image::default();
        image.apply(MetadataRecord::Topic {
            name: "t".into(),
            topic_id: Uuid::from_u128(4),
            partitions: vec![vec![1, 2, 3]],
            configs: Default::default(),
        });
        image
    }

    fn decide(image: &Image, target: Option<&[i32]>) -> Result<Vec<MetadataRecord>, ErrorCode> {
        let placement = Placement {
            brokers: vec![1, 2, 3, 4],
            fenced: vec![5],
            partitions_default: 1,
            replication_factor_default: 1,
        };
        let wish = Wish {
            topic: "t".into(),
            partition: 0,
            target: target.map(<[i32]>::to_vec),
        };
        alter(image, &placement, &wish, true).map_err(|refusal| refusal.code)
    }

    fn apply(image: &mut Image, records: Vec<MetadataRecord>) {
        for record in records {
            image.apply(record);
        }
    }

    #[test]
    fn a_move_ends_when_its_group_says_so_and_not_for_an_older_one() {
        let mut image = image();
        let records = decide(&image, Some(&[4, 2, 3])).unwrap();
        apply(&mut image, records);
        assert_eq!(settled(&image, Uuid::from_u128(4), 0, 0), []);
        let done = settled(&image, Uuid::from_u128(4), 0, 1);
        apply(&mut image, done);
        assert_eq!(image.topic("t").unwrap().partitions[0], [4, 2, 3]);
        assert_eq!(settled(&image, Uuid::from_u128(4), 0, 1), []);
    }

    #[test]
    fn a_damaged_replica_goes_and_comes_again() {
        let mut image = image();
        let id = Uuid::from_u128(4);
        assert_eq!(replace(&image, id, 0, 4), [], "it has no such replica");
        let records = replace(&image, id, 0, 2);
        apply(&mut image, records);
        assert_eq!(image.topic("t").unwrap().target(0), (1, &[1, 3][..]));
        assert_eq!(replace(&image, id, 0, 2), [], "it is under way");
        let records = settled(&image, id, 0, 1);
        apply(&mut image, records);
        let topic = image.topic("t").unwrap();
        assert_eq!(topic.target(0), (2, &[1, 2, 3][..]), "as it was");
        assert_eq!((topic.settled(0), topic.adding(0)), (1, vec![2]));
        // The new one is damaged before it is one of the others.
        let records = replace(&image, id, 0, 2);
        apply(&mut image, records);
        assert_eq!(image.topic("t").unwrap().target(0), (3, &[1, 3][..]));
        assert_eq!(settled(&image, id, 0, 2), []);
        let records = settled(&image, id, 0, 3);
        apply(&mut image, records);
        assert_eq!(image.topic("t").unwrap().target(0), (4, &[1, 2, 3][..]));
        let records = settled(&image, id, 0, 4);
        assert_eq!(records.len(), 1);
        apply(&mut image, records);
        assert!(image.topic("t").unwrap().reassignment(0).is_none());
    }

    #[test]
    fn the_only_replica_is_not_given_up_for_its_damage() {
        let mut image = image();
        let records = decide(&image, Some(&[2])).unwrap();
        apply(&mut image, records);
        let records = settled(&image, Uuid::from_u128(4), 0, 1);
        apply(&mut image, records);
        assert_eq!(replace(&image, Uuid::from_u128(4), 0, 2), []);
    }

    #[test]
    fn a_cancelled_move_goes_back_where_it_came_from() {
        let mut image = image();
        assert_eq!(
            decide(&image, None),
            Err(ErrorCode::NoReassignmentInProgress)
        );
        let records = decide(&image, Some(&[4, 2])).unwrap();
        apply(&mut image, records);
        let records = decide(&image, None).unwrap();
        apply(&mut image, records);
        let topic = image.topic("t").unwrap();
        assert_eq!(topic.target(0), (2, &[1, 2, 3][..]));
        assert_eq!(topic.partitions[0], [1, 2, 3, 4]);
        assert_eq!(
            decide(&image, None),
            Err(ErrorCode::NoReassignmentInProgress),
            "it goes back already"
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for target in [&[][..], &[1, 1], &[1, 77]] {
            assert_eq!(
                decide(&image(), Some(target)),
                Err(ErrorCode::InvalidReplicaAssignment),
                "{target:?}"
            );
        }
        assert_eq!(decide(&image(), Some(&[1, 2, 3])), Ok(Vec::new()));
        assert_eq!(
            decide(&image(), Some(&[3, 2, 1])).unwrap().len(),
            1,
            "another order is another preferred leader"
        );
    }
}
