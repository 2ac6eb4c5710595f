//! Members of consumer groups: they join, share out partitions, commit offsets, fall silent and come back too late.
//!
//! What members commit only grows: each goes on from what it finds committed, and nobody else owns its partition meanwhile. So a
//! committed offset that goes back was lost, or was overwritten by a member that should have been fenced.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use streamgauge_protocol::ErrorCode;
use streamgauge_protocol::messages::messages::join_group_request::JoinGroupRequestProtocol;
use streamgauge_protocol::messages::messages::leave_group_request::MemberIdentity;
use streamgauge_protocol::messages::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use streamgauge_protocol::messages::messages::offset_fetch_request::OffsetFetchRequestTopic;
use streamgauge_protocol::messages::messages::sync_group_request::SyncGroupRequestAssignment;
use streamgauge_protocol::messages::messages::{
    FindCoordinatorRequest, GroupId, HeartbeatRequest, JoinGroupRequest, JoinGroupResponse,
    LeaveGroupRequest, OffsetCommitRequest, OffsetFetchRequest, SyncGroupRequest, TopicName,
};
use streamgauge_protocol::messages::protocol::StrBytes;

use crate::client::{Client, numbers, read_numbers, text};
use crate::network::broker_index;

/// The topic whose offsets are committed.
pub const TOPIC: &str = "work";
pub const PARTITIONS: i32 = 3;

const SESSION_TIMEOUT_MS: i32 = 6_000;
const REBALANCE_TIMEOUT_MS: i32 = 4_000;

#[derive(Default)]
struct History {
    /// Who was told that a partition is its own in a generation.
    owners: BTreeMap<(String, i32, i32), String>,
    /// The highest generation of which a member has its assignment.
    begun: BTreeMap<String, i32>,
    /// What was acknowledged or read: no less may be read from here on.
    floors: BTreeMap<(String, i32), i64>,
    commits: u64,
    refused: u64,
}

#[derive(Default)]
pub struct Groups(Mutex<History>);

impl Groups {
    fn history(&self) -> MutexGuard<'_, History> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Commits acknowledged, those refused to members of old generations, and generations.
    pub fn tally(&self) -> (u64, u64, i64) {
        let history = self.history();
        let generations = history.begun.values().map(|count| i64::from(*count)).sum();
        (history.commits, history.refused, generations)
    }
}

/// A member that has its assignment.
struct Membership {
    generation: i32,
    partitions: Vec<i32>,
    /// The next offset to commit of each.
    next: BTreeMap<i32, i64>,
}

/// What becomes of a member after an answer.
enum Turn {
    GoOn,
    Rejoin,
    /// Its id counts no longer.
    Forget,
    FindCoordinator,
}

fn turn(error: Option<ErrorCode>) -> Turn {
    match error {
        None => Turn::GoOn,
        Some(ErrorCode::RebalanceInProgress) => Turn::Rejoin,
        Some(
            ErrorCode::UnknownMemberId | ErrorCode::IllegalGeneration | ErrorCode::FencedInstanceId,
        ) => Turn::Forget,
        Some(_) => Turn::FindCoordinator,
    }
}

struct Member {
    client: Client,
    groups: Arc<Groups>,
    group: String,
    id: StrBytes,
    coordinator: usize,
}

/// Takes part in a group until told to stop.
pub async fn take_part(client: Client, groups: Arc<Groups>, group: String) {
    let mut member = Member {
        client,
        groups,
        group,
        id: StrBytes::default(),
        coordinator: 0,
    };
    while !member.client.is_to_stop() {
        member.client.pause(300).await;
        if !member.find_coordinator().await {
            continue;
        }
        let Some(joined) = member.join().await else {
            continue;
        };
        let Some(membership) = member.sync(joined).await else {
            continue;
        };
        member.own(membership).await;
    }
    member.leave().await;
}

/// Reads what is committed, as whoever watches a group does, and once more when all is over.
pub async fn watch(mut client: Client, groups: Arc<Groups>, group: String) {
    let mut last_round = false;
    loop {
        let is_last = client.is_to_stop();
        client.pause(800).await;
        let Some(coordinator) = find_coordinator(&mut client, &group).await else {
            continue;
        };
        let read = read_committed(&mut client, &groups, &group, coordinator).await;
        if last_round && read.is_some() {
            return;
        }
        last_round = is_last;
    }
}

async fn find_coordinator(client: &mut Client, group: &str) -> Option<usize> {
    let request = FindCoordinatorRequest::default().with_key(text(group));
    let broker = client.any_broker();
    let answer = client.call(broker, 3, &request).await?;
    (answer.error_code == 0).then(|| broker_index(answer.node_id.0))
}

fn offsets_wanted(group: &str) -> OffsetFetchRequest {
    OffsetFetchRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_topics(Some(vec![
            OffsetFetchRequestTopic::default()
                .with_name(TopicName(text(TOPIC)))
                .with_partition_indexes((0..PARTITIONS).collect()),
        ]))
}

/// The committed offsets, checked against what was acknowledged or read before it was asked.
async fn read_committed(
    client: &mut Client,
    groups: &Groups,
    group: &str,
    coordinator: usize,
) -> Option<BTreeMap<i32, i64>> {
    let before = groups.history().floors.clone();
    let doubted = client.leaders_doubted();
    let answer = client.call(coordinator, 7, &offsets_wanted(group)).await?;
    let topic = answer.topics.first().filter(|_| answer.error_code == 0)?;
    if topic
        .partitions
        .iter()
        .any(|partition| partition.error_code != 0)
    {
        return None;
    }
    let mut read = BTreeMap::new();
    for partition in &topic.partitions {
        let (index, offset) = (partition.partition_index, partition.committed_offset);
        let key = (group.to_owned(), index);
        let floor = before.get(&key).copied().unwrap_or(-1);
        if offset < floor && client.leaders_doubted() != doubted {
            return None;
        }
        if offset < floor {
            client.violation(format!(
                "{group} has {offset} committed for partition {index}, after {floor} was acknowledged or read"
            ));
        }
        let mut history = groups.history();
        let floor = history.floors.entry(key).or_insert(-1);
        *floor = offset.max(*floor);
        read.insert(index, offset);
    }
    Some(read)
}

impl Member {
    async fn find_coordinator(&mut self) -> bool {
        match find_coordinator(&mut self.client, &self.group).await {
            Some(found) => {
                self.coordinator = found;
                true
            }
            None => false,
        }
    }

    async fn join(&mut self) -> Option<JoinGroupResponse> {
        for _ in 0..2 {
            let protocol = JoinGroupRequestProtocol::default()
                .with_name(text("by-turns"))
                .with_metadata(Bytes::from_static(b"m"));
            let request = JoinGroupRequest::default()
                .with_group_id(GroupId(text(&self.group)))
                .with_member_id(self.id.clone())
                .with_session_timeout_ms(SESSION_TIMEOUT_MS)
                .with_rebalance_timeout_ms(REBALANCE_TIMEOUT_MS)
                .with_protocol_type(text("simulated"))
                .with_protocols(vec![protocol]);
            let answer = self.client.call(self.coordinator, 5, &request).await?;
            match ErrorCode::try_from_code(answer.error_code) {
                None => {
                    self.id = answer.member_id.clone();
                    return Some(answer);
                }
                Some(ErrorCode::MemberIdRequired) => self.id = answer.member_id,
                Some(ErrorCode::UnknownMemberId) => {
                    self.id = StrBytes::default();
                    return None;
                }
                Some(_) => return None,
            }
        }
        None
    }

    /// The leader deals the partitions out; everybody gets what is his.
    async fn sync(&mut self, joined: JoinGroupResponse) -> Option<Membership> {
        let generation = joined.generation_id;
        let assignments = joined.members.iter().enumerate().map(|(place, member)| {
            let count = joined.members.len();
            let own: Vec<i32> = (0..PARTITIONS)
                .filter(|partition| (*partition + generation) as usize % count == place)
                .collect();
            SyncGroupRequestAssignment::default()
                .with_member_id(member.member_id.clone())
                .with_assignment(numbers(&own))
        });
        let request = SyncGroupRequest::default()
            .with_group_id(GroupId(text(&self.group)))
            .with_generation_id(generation)
            .with_member_id(self.id.clone())
            .with_assignments(assignments.collect());
        if self.client.random.one_in(12) {
            // Slow: others may have gone on.
            self.client.pause(6_000).await;
        }
        let answer = self.client.call(self.coordinator, 3, &request).await?;
        if let Turn::Forget = turn(ErrorCode::try_from_code(answer.error_code)) {
            self.id = StrBytes::default();
        }
        if answer.error_code != 0 {
            return None;
        }
        let partitions = read_numbers(&answer.assignment);
        let mut history = self.groups.history();
        let begun = history.begun.entry(self.group.clone()).or_default();
        *begun = generation.max(*begun);
        for partition in &partitions {
            let key = (self.group.clone(), generation, *partition);
            let owner = history
                .owners
                .entry(key)
                .or_insert_with(|| self.id.to_string());
            if *owner != self.id.as_str() {
                self.client.violation(format!(
                    "partition {partition} belongs to {owner} and to {} in generation {generation} of {}",
                    self.id.as_str(),
                    self.group
                ));
            }
        }
        Some(Membership {
            generation,
            partitions,
            next: BTreeMap::new(),
        })
    }

    /// Commits offsets of what it owns until it has to join again.
    async fn own(&mut self, mut membership: Membership) {
        loop {
            let Some(committed) = read_committed(
                &mut self.client,
                &self.groups,
                &self.group,
                self.coordinator,
            )
            .await
            else {
                if !self.go_on_elsewhere().await {
                    return;
                }
                continue;
            };
            for partition in &membership.partitions {
                let next = committed.get(partition).map_or(0, |offset| offset + 1);
                membership.next.insert(*partition, next);
            }
            break;
        }
        while !self.client.is_to_stop() {
            self.client.pause(600).await;
            if self.client.random.one_in(40) {
                // Long enough to be given up; it does not know, and goes on.
                self.client.pause(14_000).await;
            }
            if self.client.random.one_in(60) {
                return self.leave().await;
            }
            let turn = match self.client.random.one_in(3) {
                true => self.heartbeat(membership.generation).await,
                false => self.commit(&mut membership).await,
            };
            match turn {
                Turn::GoOn => {}
                Turn::Rejoin => return,
                Turn::Forget => {
                    self.id = StrBytes::default();
                    return;
                }
                Turn::FindCoordinator => {
                    if !self.go_on_elsewhere().await {
                        return;
                    }
                }
            }
        }
    }

    /// The coordinator is asked for once more; false if there is nothing to go on for.
    async fn go_on_elsewhere(&mut self) -> bool {
        while !self.client.is_to_stop() {
            self.client.pause(200).await;
            if self.find_coordinator().await {
                return true;
            }
        }
        false
    }

    async fn heartbeat(&mut self, generation: i32) -> Turn {
        let request = HeartbeatRequest::default()
            .with_group_id(GroupId(text(&self.group)))
            .with_generation_id(generation)
            .with_member_id(self.id.clone());
        match self.client.call(self.coordinator, 3, &request).await {
            Some(answer) => turn(ErrorCode::try_from_code(answer.error_code)),
            None => Turn::FindCoordinator,
        }
    }

    /// The same offsets again until there is an answer: none is passed over whose fate is unknown.
    async fn commit(&mut self, membership: &mut Membership) -> Turn {
        if membership.partitions.is_empty() {
            return Turn::GoOn;
        }
        let generation = membership.generation;
        let partitions = membership.next.iter().map(|(partition, offset)| {
            OffsetCommitRequestPartition::default()
                .with_partition_index(*partition)
                .with_committed_offset(*offset)
        });
        let request = OffsetCommitRequest::default()
            .with_group_id(GroupId(text(&self.group)))
            .with_generation_id_or_member_epoch(generation)
            .with_member_id(self.id.clone())
            .with_topics(vec![
                OffsetCommitRequestTopic::default()
                    .with_name(TopicName(text(TOPIC)))
                    .with_partitions(partitions.collect()),
            ]);
        let begun = self.groups.history().begun.get(&self.group).copied();
        let is_old = begun.is_some_and(|begun| begun > generation);
        let Some(answer) = self.client.call(self.coordinator, 7, &request).await else {
            return Turn::FindCoordinator;
        };
        let codes: Vec<i16> = answer
            .topics
            .iter()
            .flat_map(|topic| {
                topic
                    .partitions
                    .iter()
                    .map(|partition| partition.error_code)
            })
            .collect();
        let failed = codes
            .iter()
            .find_map(|code| ErrorCode::try_from_code(*code));
        let mut history = self.groups.history();
        if failed.is_some() {
            history.refused += u64::from(is_old);
            return turn(failed);
        }
        if is_old {
            self.client.violation(format!(
                "{} took a commit of generation {generation} after {begun:?} had begun",
                self.group
            ));
        }
        history.commits += 1;
        for (partition, offset) in &mut membership.next {
            let floor = history
                .floors
                .entry((self.group.clone(), *partition))
                .or_insert(-1);
            *floor = (*offset).max(*floor);
            *offset += 1;
        }
        Turn::GoOn
    }

    async fn leave(&mut self) {
        if self.id.is_empty() {
            return;
        }
        let request = LeaveGroupRequest::default()
            .with_group_id(GroupId(text(&self.group)))
            .with_members(vec![
                MemberIdentity::default().with_member_id(self.id.clone()),
            ]);
        let _ = self.client.call(self.coordinator, 3, &request).await;
        self.id = StrBytes::default();
    }
}
