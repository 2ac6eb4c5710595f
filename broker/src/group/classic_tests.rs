use super::*;
use crate::group::member::{JoinRequest, Protocol};
use proptest::prelude::*;
use std::collections::BTreeSet;

const DELAY_MS: i64 = 3_000;

struct Bench {
    group: ClassicGroup,
    now_ms: i64,
    next_token: Token,
    open: BTreeSet<Token>,
    effects: Effects,
}

impl Bench {
    fn new(delay_ms: i64) -> Self {
        let limits = GroupLimits {
            initial_rebalance_delay_ms: delay_ms,
            group_size_max: 10,
            record_bytes_max: 1 << 20,
        };
        Self {
            group: ClassicGroup::new("g", limits, 0),
            now_ms: 0,
            next_token: 0,
            open: BTreeSet::new(),
            effects: Effects::default(),
        }
    }

    fn request(member_id: &str, instance: Option<&str>, metadata: &'static [u8]) -> JoinRequest {
        JoinRequest {
            member_id: member_id.into(),
            group_instance_id: instance.map(Into::into),
            client_id: "c".into(),
            session_timeout_ms: 10_000,
            rebalance_timeout_ms: 60_000,
            protocol_type: "consumer".into(),
            protocols: vec![Protocol {
                name: "range".into(),
                metadata: Bytes::from_static(metadata),
            }],
            supports_skip_assignment: true,
            ..JoinRequest::default()
        }
    }

    fn join(&mut self, mut request: JoinRequest) -> Token {
        self.next_token += 1;
        request.new_member_suffix = self.next_token.to_string();
        self.open.insert(self.next_token);
        self.group
            .join(request, self.next_token, self.now_ms, &mut self.effects);
        self.next_token
    }

    fn sync(&mut self, member_id: &str, generation: i32) -> Token {
        self.next_token += 1;
        self.open.insert(self.next_token);
        let assignments = self.group.members().map(|m| {
            (
                m.member_id.clone(),
                Bytes::from(format!("{generation}/{}", m.member_id)),
            )
        });
        let request = SyncRequest {
            member_id: member_id.into(),
            generation,
            assignments: assignments.collect(),
            ..Default::default()
        };
        self.group
            .sync(request, self.next_token, self.now_ms, &mut self.effects);
        self.next_token
    }

    fn pass(&mut self, ms: i64) {
        self.now_ms += ms;
        self.group.tick(self.now_ms, &mut self.effects);
    }

    fn joined(&mut self, token: Token) -> Option<JoinReply> {
        let at = self
            .effects
            .joins
            .iter()
            .position(|(answered, _)| *answered == token)?;
        Some(self.effects.joins.remove(at).1)
    }

    fn place(&mut self, token: Token) -> Joined {
        match self.joined(token) {
            Some(JoinReply::Joined(joined)) => joined,
            other => panic!("not joined: {other:?}"),
        }
    }

    fn error(&mut self, token: Token) -> ResponseError {
        match self.joined(token) {
            Some(JoinReply::Failed { error, .. }) => error,
            other => panic!("not refused: {other:?}"),
        }
    }

    /// A stable group of one, its leader's place.
    fn stable(instance: Option<&str>) -> (Self, Joined) {
        let mut bench = Self::new(0);
        let token = bench.join(Self::request("", instance, b"m"));
        let leader = bench.place(token);
        bench.sync(&leader.member_id, leader.generation);
        assert_eq!(bench.group.state(), GroupState::Stable);
        (bench, leader)
    }
}

#[test]
fn the_first_generation_waits_for_the_initial_delay_and_newcomers_prolong_it() {
    let mut bench = Bench::new(DELAY_MS);
    let first = bench.join(Bench::request("", None, b"m"));
    bench.pass(DELAY_MS - 1);
    let second = bench.join(Bench::request("", None, b"m"));
    bench.pass(1);
    assert!(bench.effects.joins.is_empty());
    bench.pass(DELAY_MS);
    let (first, second) = (bench.place(first), bench.place(second));
    assert_eq!((first.members.len(), second.members.len()), (2, 0));
    assert_eq!((first.generation, &first.leader), (1, &second.leader));
}

#[test]
fn a_new_dynamic_member_is_told_its_id_first() {
    let mut bench = Bench::new(0);
    let mut request = Bench::request("", None, b"m");
    request.requires_known_member_id = true;
    let token = bench.join(request.clone());
    let Some(JoinReply::Failed { error, member_id }) = bench.joined(token) else {
        panic!("no answer")
    };
    assert_eq!(error, ResponseError::MemberIdRequired);
    let token = bench.join(JoinRequest {
        member_id: member_id.clone(),
        ..request
    });
    assert_eq!(bench.place(token).member_id, member_id);
}

#[test]
fn a_follower_that_rejoins_unchanged_keeps_its_place_and_a_leader_starts_a_rebalance() {
    let (mut bench, leader) = Bench::stable(None);
    let follower = bench.join(Bench::request("", None, b"m"));
    let rejoin = bench.join(Bench::request(&leader.member_id, None, b"m"));
    let (follower, leader) = (bench.place(follower), bench.place(rejoin));
    bench.sync(&leader.member_id, 2);
    bench.sync(&follower.member_id, 2);
    let again = bench.join(Bench::request(&follower.member_id, None, b"m"));
    assert_eq!(bench.place(again).generation, 2);
    assert_eq!(bench.group.state(), GroupState::Stable);
    bench.join(Bench::request(&leader.member_id, None, b"m"));
    assert_eq!(bench.group.state(), GroupState::PreparingRebalance);
    let heartbeat = bench
        .group
        .heartbeat(&follower.member_id, None, 2, bench.now_ms);
    assert_eq!(heartbeat, Err(ResponseError::RebalanceInProgress));
}

#[test]
fn a_static_member_is_replaced_without_a_rebalance_and_its_old_id_is_fenced() {
    let (mut bench, old) = Bench::stable(Some("i"));
    let token = bench.join(Bench::request("", Some("i"), b"m"));
    let new = bench.place(token);
    assert_eq!((new.generation, new.skip_assignment), (1, true));
    assert_eq!(bench.group.state(), GroupState::Stable);
    let fenced = bench
        .group
        .heartbeat(&old.member_id, Some("i"), 1, bench.now_ms);
    assert_eq!(fenced, Err(ResponseError::FencedInstanceId));
    let token = bench.join(Bench::request(&old.member_id, Some("i"), b"m"));
    assert_eq!(bench.error(token), ResponseError::FencedInstanceId);
}

#[test]
fn a_silent_member_is_removed_and_the_group_becomes_empty() {
    let (mut bench, member) = Bench::stable(None);
    bench.pass(9_999);
    assert_eq!(
        bench
            .group
            .heartbeat(&member.member_id, None, 1, bench.now_ms),
        Ok(())
    );
    bench.pass(9_999);
    assert_eq!(bench.group.state(), GroupState::Stable);
    bench.pass(1);
    assert_eq!(
        (bench.group.state(), bench.group.generation()),
        (GroupState::Empty, 2)
    );
}

#[test]
fn members_that_never_sync_are_removed_after_the_rebalance_timeout() {
    let mut bench = Bench::new(0);
    let token = bench.join(Bench::request("", None, b"m"));
    let member = bench.place(token);
    for _ in 0..6 {
        bench.pass(9_990);
        assert_eq!(
            bench
                .group
                .heartbeat(&member.member_id, None, 1, bench.now_ms),
            Ok(())
        );
    }
    bench.pass(60);
    assert_eq!(bench.group.state(), GroupState::Empty);
}

#[test]
fn strangers_and_old_generations_may_not_commit_to_a_living_group() {
    let (mut bench, member) = Bench::stable(None);
    let mut check = |id: &str, generation| bench.group.check_offset_commit(id, None, generation, 0);
    assert_eq!(check("", -1), Err(ResponseError::UnknownMemberId));
    assert_eq!(
        check(&member.member_id, 0),
        Err(ResponseError::IllegalGeneration)
    );
    assert_eq!(check(&member.member_id, 1), Ok(()));
}

#[test]
fn a_protocol_nobody_shares_is_inconsistent() {
    let (mut bench, _) = Bench::stable(None);
    let mut request = Bench::request("", None, b"m");
    request.protocols[0].name = "sticky".into();
    let token = bench.join(request);
    assert_eq!(bench.error(token), ResponseError::InconsistentGroupProtocol);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_history_keeps_the_groups_promises(steps in prop::collection::vec((0u8..8, 0usize..5, 0i64..9_000), 1..80)) {
        let mut bench = Bench::new(DELAY_MS);
        bench.group.limits.group_size_max = 4;
        let mut known: Vec<(String, i32)> = Vec::new();
        let mut generation = 0;
        let mut persisted = None;
        for (kind, who, ms) in steps {
            let member = known.get(who).cloned();
            match (kind, member) {
                (0, None) => { bench.join(Bench::request("", None, b"m")); }
                (0 | 1, Some((id, _))) => { bench.join(Bench::request(&id, None, b"m")); }
                (2, Some((id, at))) => { bench.sync(&id, at); }
                (3, Some((id, _))) => {
                    bench.group.leave(&[(id, None)], bench.now_ms, &mut bench.effects);
                }
                (4, Some((id, at))) => { let _ = bench.group.heartbeat(&id, None, at, bench.now_ms); }
                (6, _) => {
                    let request = Bench::request("", None, b"m");
                    bench.join(JoinRequest { requires_known_member_id: true, ..request });
                }
                (7, Some((id, _))) => { bench.join(Bench::request(&id, None, b"changed")); }
                (5, _) if who == 0 => { bench.join(Bench::request("", Some("i"), b"m")); }
                _ => bench.pass(ms),
            }
            let effects = std::mem::take(&mut bench.effects);
            for (token, reply) in effects.joins {
                prop_assert!(bench.open.remove(&token), "answered twice");
                match reply {
                    JoinReply::Joined(joined) => {
                        known.retain(|(id, _)| *id != joined.member_id);
                        known.push((joined.member_id, joined.generation));
                    }
                    JoinReply::Failed { error: ResponseError::MemberIdRequired, member_id } => {
                        known.insert(0, (member_id, -1));
                    }
                    JoinReply::Failed { .. } => {}
                }
            }
            for (token, reply) in effects.syncs {
                prop_assert!(bench.open.remove(&token), "answered twice");
                if let Ok(synced) = reply {
                    let prefix = format!("{}/", bench.group.generation());
                    prop_assert!(synced.assignment.starts_with(prefix.as_bytes()), "another generation's assignment");
                }
            }
            for record in effects.records {
                if let CoordinatorRecord::GroupMetadata { value, .. } = record {
                    persisted = value;
                }
            }
            prop_assert!(bench.group.generation() >= generation);
            generation = bench.group.generation();
            if bench.group.members().next().is_some() {
                let leader = bench.group.leader();
                prop_assert!(bench.group.members().any(|m| Some(m.member_id.as_str()) == leader));
            }
            let held = bench.group.members().flat_map(|m| m.awaiting_join.into_iter().chain(m.awaiting_sync));
            prop_assert_eq!(held.collect::<BTreeSet<_>>(), bench.open.clone(), "an answer was lost");
            if bench.group.state() == GroupState::Stable {
                let limits = bench.group.limits;
                let value = persisted.clone().unwrap_or_else(|| bench.group.to_value());
                let reloaded = ClassicGroup::from_value("g", &value, limits, bench.now_ms);
                prop_assert_eq!(reloaded.to_value().generation, generation);
                let ids = |group: &ClassicGroup| -> Vec<_> {
                    group.members().map(|m| (m.member_id.clone(), m.assignment.clone())).collect()
                };
                prop_assert_eq!(ids(&reloaded), ids(&bench.group), "a reload would change the group");
            }
        }
        // Time alone answers everybody.
        for _ in 0..200 {
            bench.pass(60_000);
        }
        for (token, _) in std::mem::take(&mut bench.effects.joins) { bench.open.remove(&token); }
        for (token, _) in std::mem::take(&mut bench.effects.syncs) { bench.open.remove(&token); }
        prop_assert!(bench.open.is_empty(), "somebody waits for ever");
        prop_assert_eq!(bench.group.state(), GroupState::Empty);
    }
}

#[test]
fn a_join_or_sync_that_is_repeated_takes_the_place_of_the_one_that_waits() {
    let (mut bench, leader) = Bench::stable(None);
    bench.join(Bench::request("", None, b"m"));
    let follower = {
        let rejoin = bench.join(Bench::request(&leader.member_id, None, b"m"));
        bench.place(rejoin).members[1].0.clone()
    };
    bench.effects.syncs.clear();
    let first = bench.sync(&follower, 2);
    let again = bench.sync(&follower, 2);
    let replies = std::mem::take(&mut bench.effects.syncs);
    assert_eq!(
        replies,
        [(first, Err(ResponseError::RebalanceInProgress))],
        "the repeated sync waits on"
    );
    bench.sync(&leader.member_id, 2);
    assert!(
        bench
            .effects
            .syncs
            .iter()
            .any(|(token, reply)| *token == again && reply.is_ok())
    );

    let first = bench.join(Bench::request(&leader.member_id, None, b"n"));
    let again = bench.join(Bench::request(&leader.member_id, None, b"n"));
    assert_eq!(bench.error(first), ResponseError::RebalanceInProgress);
    assert!(bench.joined(again).is_none());
    let rejoin = bench.join(Bench::request(&follower, None, b"m"));
    assert_eq!(
        (
            bench.place(again).generation,
            bench.place(rejoin).generation
        ),
        (3, 3)
    );
}

#[test]
fn newcomers_prolong_the_initial_delay_also_when_a_group_comes_back_to_life() {
    let mut bench = Bench::new(DELAY_MS);
    let token = bench.join(Bench::request("", None, b"m"));
    bench.pass(DELAY_MS);
    let member = bench.place(token);
    let leaver = [(member.member_id, None)];
    bench.group.leave(&leaver, bench.now_ms, &mut bench.effects);
    assert_eq!(
        (bench.group.state(), bench.group.generation()),
        (GroupState::Empty, 2)
    );
    let first = bench.join(Bench::request("", None, b"m"));
    bench.join(Bench::request("", None, b"m"));
    bench.pass(DELAY_MS);
    assert!(bench.joined(first).is_none());
    bench.pass(DELAY_MS);
    assert_eq!(bench.place(first).generation, 3);
}

#[test]
fn a_full_group_refuses_newcomers_and_lets_its_members_rejoin() {
    let mut bench = Bench::new(0);
    bench.group.limits.group_size_max = 2;
    let token = bench.join(Bench::request("", None, b"m"));
    let leader = bench.place(token);
    let second = bench.join(Bench::request("", None, b"m"));
    let rejoin = bench.join(Bench::request(&leader.member_id, None, b"m"));
    bench.place(rejoin);
    let second = bench.place(second);
    let third = bench.join(Bench::request("", None, b"m"));
    let refused = JoinReply::Failed {
        error: ResponseError::GroupMaxSizeReached,
        member_id: String::new(),
    };
    assert_eq!(bench.joined(third), Some(refused));
    let again = bench.join(Bench::request(&second.member_id, None, b"m"));
    assert_eq!(bench.place(again).generation, 2);
}

#[test]
fn a_member_that_no_longer_fits_loses_its_place() {
    let (mut bench, leader) = Bench::stable(None);
    let second = bench.join(Bench::request("", None, b"m"));
    let rejoin = bench.join(Bench::request(&leader.member_id, None, b"m"));
    let (second, _) = (bench.place(second), bench.place(rejoin));
    bench.group.limits.group_size_max = 1;
    let stays = bench.join(Bench::request(&leader.member_id, None, b"changed"));
    let goes = bench.join(Bench::request(&second.member_id, None, b"m"));
    assert_eq!(bench.error(goes), ResponseError::GroupMaxSizeReached);
    assert_eq!(bench.place(stays).members.len(), 1);
}

#[test]
fn ids_that_are_handed_out_are_bounded_and_end_with_the_session() {
    let mut bench = Bench::new(0);
    let mut request = Bench::request("", None, b"m");
    request.requires_known_member_id = true;
    for _ in 0..PENDING_MEMBERS_MAX {
        let token = bench.join(request.clone());
        assert_eq!(bench.error(token), ResponseError::MemberIdRequired);
    }
    let token = bench.join(request.clone());
    assert_eq!(bench.error(token), ResponseError::GroupMaxSizeReached);
    bench.pass(10_000);
    assert!(bench.group.is_unused());
    let token = bench.join(request);
    assert_eq!(bench.error(token), ResponseError::MemberIdRequired);
}

#[test]
fn an_instance_cannot_take_an_id_that_was_handed_out_to_a_dynamic_member() {
    let (mut bench, _) = Bench::stable(Some("i"));
    let mut request = Bench::request("", None, b"m");
    request.requires_known_member_id = true;
    let token = bench.join(request);
    let Some(JoinReply::Failed { member_id, .. }) = bench.joined(token) else {
        panic!("no answer")
    };
    let token = bench.join(Bench::request(&member_id, Some("i"), b"m"));
    assert_eq!(bench.error(token), ResponseError::FencedInstanceId);
}

#[test]
fn several_members_leave_at_once_each_with_its_own_answer() {
    let (mut bench, leader) = Bench::stable(Some("i"));
    let leavers = [
        (String::new(), Some("i".to_owned())),
        (String::new(), Some("unknown".to_owned())),
        (leader.member_id, None),
    ];
    let results = bench
        .group
        .leave(&leavers, bench.now_ms, &mut bench.effects);
    let unknown = Err(ResponseError::UnknownMemberId);
    assert_eq!(results, [Ok(()), unknown, unknown]);
    assert_eq!(bench.group.state(), GroupState::Empty);
}

#[test]
fn a_generation_too_large_to_be_stored_is_refused_and_the_group_lives_on() {
    let (mut bench, leader) = Bench::stable(None);
    bench.group.limits.record_bytes_max = 100;
    let rejoin = bench.join(Bench::request(&leader.member_id, None, &[0; 200]));
    assert_eq!(bench.place(rejoin).generation, 2);
    bench.effects = Effects::default();
    let sync = bench.sync(&leader.member_id, 2);
    let refused = Err(ResponseError::UnknownServerError);
    assert_eq!(bench.effects.syncs, [(sync, refused)]);
    assert!(bench.effects.records.is_empty());
    let rejoin = bench.join(Bench::request(&leader.member_id, None, b"m"));
    let generation = bench.place(rejoin).generation;
    bench.sync(&leader.member_id, generation);
    assert_eq!(bench.group.state(), GroupState::Stable);
}
