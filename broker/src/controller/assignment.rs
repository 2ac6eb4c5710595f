//! Which brokers hold a partition, and how it is told to take others (KIP-455).
//!
//! While a partition moves, its replicas are those that it is to have and those that it had. What
//! the replication does about that is its own affair; it says when it is done.

use super::image::Topic;

/// A partition that moves, or has moved once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// The brokers that the partition was created with: a new replica begins with their membership.
    pub founders: Vec<i32>,
    /// Counts the reassignments.
    pub epoch: u64,
    /// The last one that came to its end: its replicas are what the partition has or had last.
    pub settled: u64,
    pub reassignment: Option<Reassignment>,
}

/// A move that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reassignment {
    /// The replicas that the partition is to have, the preferred leader first.
    pub target: Vec<i32>,
    /// Those that it had before, and has again if the move is cancelled.
    pub previous: Vec<i32>,
    /// Where it moves on to: a damaged replica goes, and comes again as a new one.
    pub then: Option<Vec<i32>>,
}

impl Topic {
    fn replicas(&self, partition: i32) -> Option<&Vec<i32>> {
        self.partitions.get(usize::try_from(partition).ok()?)
    }

    pub fn reassignment(&self, partition: i32) -> Option<&Reassignment> {
        self.moved.get(&partition)?.reassignment.as_ref()
    }

    /// The reassignments under way, by partition.
    pub fn reassignments(&self) -> impl Iterator<Item = (i32, &Reassignment)> {
        self.moved
            .iter()
            .filter_map(|(index, moved)| Some((*index, moved.reassignment.as_ref()?)))
    }

    /// The brokers that the partition was created with.
    pub fn founders(&self, partition: i32) -> &[i32] {
        match self.moved.get(&partition) {
            Some(moved) => &moved.founders,
            None => self.replicas(partition).map_or(&[], Vec::as_slice),
        }
    }

    /// The epoch of the partition's assignment and the brokers that it is to have.
    pub fn target(&self, partition: i32) -> (u64, &[i32]) {
        let epoch = self.moved.get(&partition).map_or(0, |moved| moved.epoch);
        let replicas = match self.reassignment(partition) {
            Some(reassignment) => Some(&reassignment.target),
            None => self.replicas(partition),
        };
        (epoch, replicas.map_or(&[], Vec::as_slice))
    }

    /// The epoch of the last assignment that the partition has come to have.
    pub fn settled(&self, partition: i32) -> u64 {
        self.moved.get(&partition).map_or(0, |moved| moved.settled)
    }

    /// Whether clients are told of a move. One that was taken back, or only gives the replicas another order, is
    /// over for them at once, as in Kafka; the group may still have to come to it.
    pub fn is_reassigning(&self, partition: i32) -> bool {
        !self.adding(partition).is_empty() || !self.removing(partition).is_empty()
    }

    /// The replicas that clients are told of: those that the partition is to have, and then those that it had before.
    /// Who was to come and is not any more is not among them, though it may take part for a while.
    pub fn replicas_told(&self, partition: i32) -> Vec<i32> {
        match self.reassignment(partition) {
            Some(moving) => [moving.target.clone(), self.removing(partition)].concat(),
            None => self.replicas(partition).cloned().unwrap_or_default(),
        }
    }

    /// The replicas that a move adds, in the order of its target.
    pub fn adding(&self, partition: i32) -> Vec<i32> {
        self.reassignment(partition)
            .map_or_else(Vec::new, |moving| without(&moving.target, &moving.previous))
    }

    /// The replicas that a move takes away.
    pub fn removing(&self, partition: i32) -> Vec<i32> {
        self.reassignment(partition)
            .map_or_else(Vec::new, |moving| without(&moving.previous, &moving.target))
    }

    /// Begins a move, or gives one that is under way another end.
    pub fn reassign(&mut self, partition: i32, target: Vec<i32>, then: Option<Vec<i32>>) {
        let is_told = self.is_reassigning(partition);
        let Some(replicas) = usize::try_from(partition)
            .ok()
            .and_then(|at| self.partitions.get_mut(at))
        else {
            return;
        };
        let moved = self.moved.entry(partition).or_insert_with(|| Moved {
            founders: replicas.clone(),
            epoch: 0,
            settled: 0,
            reassignment: None,
        });
        let previous = match moved.reassignment.take() {
            Some(reassignment) if is_told => reassignment.previous,
            // For clients it is over.
            Some(reassignment) => reassignment.target,
            None => replicas.clone(),
        };
        moved.epoch += 1;
        // Whoever may have taken part stays until the group has said who does.
        let leaving = without(replicas, &target);
        *replicas = [target.clone(), leaving].concat();
        moved.reassignment = Some(Reassignment {
            target,
            previous,
            then,
        });
    }

    /// The move of that epoch has come to its end.
    pub fn reassigned(&mut self, partition: i32, epoch: u64) {
        let replicas = usize::try_from(partition)
            .ok()
            .and_then(|at| self.partitions.get_mut(at));
        let moved = self.moved.get_mut(&partition);
        if let (Some(replicas), Some(moved)) = (replicas, moved)
            && moved.epoch == epoch
            && let Some(reassignment) = moved.reassignment.take()
        {
            *replicas = reassignment.target;
            moved.settled = epoch;
        }
    }
}

fn without(of: &[i32], others: &[i32]) -> Vec<i32> {
    let rest = of.iter().filter(|id| !others.contains(id));
    rest.copied().collect()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn topic() -> Topic {
        Topic {
            name: "t".into(),
            topic_id: Uuid::from_u128(1),
            partitions: vec![vec![9], vec![1, 2, 3]],
            configs: Default::default(),
            aggregation_producer_id: None,
            moved: Default::default(),
        }
    }

    #[test]
    fn a_move_has_all_replicas_until_it_is_done() {
        let mut topic = topic();
        assert_eq!(topic.target(1), (0, &[1, 2, 3][..]));
        topic.reassign(1, vec![4, 3, 1], None);
        assert_eq!(topic.partitions[1], [4, 3, 1, 2]);
        assert_eq!((topic.adding(1), topic.removing(1)), (vec![4], vec![2]));
        assert_eq!(topic.target(1), (1, &[4, 3, 1][..]));
        topic.reassigned(1, 1);
        assert_eq!(topic.partitions[1], [4, 3, 1]);
        assert!(topic.reassignment(1).is_none());
        assert_eq!(topic.founders(1), [1, 2, 3]);
        assert_eq!(topic.founders(0), [9]);
    }

    #[test]
    fn a_move_that_is_given_another_end_forgets_nobody_who_may_take_part() {
        let mut topic = topic();
        topic.reassign(1, vec![1, 2, 4], None);
        topic.reassign(1, vec![1, 2, 5], None);
        assert_eq!(topic.partitions[1], [1, 2, 5, 4, 3]);
        assert_eq!((topic.adding(1), topic.removing(1)), (vec![5], vec![3]));
        assert_eq!(topic.replicas_told(1), [1, 2, 5, 3]);
        assert_eq!(topic.reassignment(1).unwrap().previous, [1, 2, 3]);
        topic.reassigned(1, 1);
        assert!(topic.reassignment(1).is_some(), "the first move's end");
        assert_eq!(topic.settled(1), 0);
        topic.reassigned(1, 2);
        assert_eq!(topic.settled(1), 2);
        assert_eq!(topic.partitions[1], [1, 2, 5]);
    }

    #[test]
    fn a_move_that_is_taken_back_is_over_for_clients() {
        let mut topic = topic();
        assert!(!topic.is_reassigning(1));
        topic.reassign(1, vec![4, 3, 1], None);
        assert!(topic.is_reassigning(1));
        assert_eq!(topic.replicas_told(1), [4, 3, 1, 2]);
        topic.reassign(1, vec![1, 2, 3], None);
        assert!(!topic.is_reassigning(1));
        assert_eq!(topic.replicas_told(1), [1, 2, 3]);
        assert_eq!(topic.partitions[1], [1, 2, 3, 4], "4 may be a member");
        topic.reassign(1, vec![3, 2, 1], None);
        assert!(!topic.is_reassigning(1), "the same ones in another order");
        assert_eq!(topic.replicas_told(1), [3, 2, 1]);
        topic.reassign(1, vec![4], None);
        assert_eq!(topic.replicas_told(1), [4, 3, 2, 1]);
        assert_eq!(topic.reassignment(1).unwrap().previous, [3, 2, 1]);
    }
}
