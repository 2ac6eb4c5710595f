use std::sync::Mutex;

use super::*;

/// Reaches some brokers, and keeps what it is asked to send.
#[derive(Default)]
struct Reached {
    brokers: Vec<i32>,
    asked: Mutex<Vec<(i32, Bytes)>>,
}

impl Transport for Reached {
    fn send(&self, _to: i32, _messages: Vec<GroupMessage>) {}

    fn pulse(&self, _to: i32, _mark: Mark) {}

    fn notify(&self, _to: i32, _payload: Bytes) -> Result<(), PeerError> {
        Ok(())
    }

    fn request(
        &self,
        to: i32,
        payload: Bytes,
        _time_max: Duration,
    ) -> BoxFuture<'static, Result<Bytes, PeerError>> {
        self.asked.lock().unwrap().push((to, payload));
        let answer = match self.brokers.contains(&to) {
            true => Ok(relay::answered(Some(Bytes::from_static(b"told")))),
            false => Err(PeerError::NotConnected { peer: to }),
        };
        Box::pin(std::future::ready(answer))
    }

    fn is_connected(&self, peer: i32) -> bool {
        self.brokers.contains(&peer)
    }

    fn set_peer(&self, _id: i32, _address: String) {}

    fn set_cluster_id(&self, _id: String) {}
}

#[tokio::test]
async fn a_broker_that_only_another_reaches_is_asked_by_that() {
    let reached = Arc::new(Reached {
        brokers: vec![3],
        ..Reached::default()
    });
    let cluster = Cluster::new(1);
    cluster.connect(Arc::clone(&reached) as Arc<dyn Transport>);
    let ask = || cluster.ask(2, &ClusterRequest::CatchUp, Duration::from_secs(1));
    assert_eq!(ask().await.err(), Some(PeerError::NotConnected { peer: 2 }));
    assert!(!cluster.is_there_for_others(2));

    cluster.heard(3, &leaders::encode(&[1, 2], &[], &[]));
    assert!(cluster.is_there_for_others(2) && !cluster.is_there_for_others(3));
    assert_eq!(ask().await.unwrap(), Bytes::from_static(b"told"));
    let asked = reached.asked.lock().unwrap().pop().unwrap();
    assert_eq!(asked.0, 3);
    let (to, _, payload) = relay::decode(asked.1.slice(1..)).unwrap();
    assert_eq!((to, payload), (2, ClusterRequest::CatchUp.encode()));

    // It passes on to a third, and says so when it cannot.
    let passed = cluster.relay(asked.1.slice(1..)).await;
    assert_eq!(relay::answer(passed), None);
}
