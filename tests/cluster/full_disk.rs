//! Brokers whose disks are full for a while.

use std::time::Duration;

use streamgauge_tests::cluster::{Cluster, NODES};
use streamgauge_tests::small_disk::{mount, unmount, where_disks_can_be_mounted};

use crate::faults::{ALL, Fault, send_through};
use crate::workload::Clients;

/// Enough for what clients write within an hour.
const DISK_BYTES: usize = 256 << 20;
const TIME_MAX: Duration = Duration::from_secs(4_000);

/// The cluster goes on, a full broker runs on and takes part again once there is room, and nothing is lost.
#[test]
fn a_history_through_full_disks_is_true() {
    let name = "full_disk::a_history_through_full_disks_is_true";
    where_disks_can_be_mounted(name, TIME_MAX, || {
        let mount = |_, directory: &std::path::Path| mount(directory, DISK_BYTES);
        let mut cluster = Cluster::start_prepared("cluster-full-disk", &[], mount);
        let faults = [
            Fault::FillLeader,
            Fault::FillAndKillLeader,
            Fault::KillLeader,
            Fault::FillLeader,
        ];
        let more = [&faults[..3], &ALL].concat();
        send_through(&mut cluster, Clients::Librdkafka, &faults, &more);
        for id in NODES {
            unmount(&cluster.data_dir(id));
        }
    });
}
