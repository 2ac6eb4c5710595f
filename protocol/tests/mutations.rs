//! The bodies of the fuzz targets (`protocol/fuzz`), driven by damaged good bytes from a fixed seed.

#[allow(dead_code)]
#[path = "../fuzz/src/lib.rs"]
mod bodies;

use bodies::{layout, mutation, records, request, seeds};

use mutation::{Random, damage};
use request::{Decoded, decode_frame};

const SEED: u64 = 0x57AE_A6A0;
const MUTATIONS_OF_A_FRAME: usize = 1_000;
const MUTATIONS_OF_A_BATCH: usize = 4_000;

#[test]
fn damaged_frames_of_every_api_and_version_are_errors_and_no_panic() {
    let mut random = Random(SEED);
    let (mut read, mut refused) = (0, 0);
    for seed in seeds::frames() {
        assert!(
            matches!(decode_frame(&seed.frame), Ok(Decoded::Message)),
            "{} {} is a good frame",
            seed.api.name,
            seed.version
        );
        for _ in 0..MUTATIONS_OF_A_FRAME {
            let mut frame = seed.frame.clone();
            // Key and version stay, so that every API gets its share.
            damage(&mut frame, 4, &mut random);
            match decode_frame(&frame) {
                Ok(_) => read += 1,
                Err(_) => refused += 1,
            }
        }
    }
    // Both ways are taken often, or the damage is of the wrong kind.
    assert!(
        read > refused / 20 && refused > read / 20,
        "{read} were read, {refused} refused"
    );
}

#[test]
fn frames_of_noise_are_errors_and_no_panic() {
    let mut random = Random(SEED);
    for seed in seeds::frames() {
        for _ in 0..100 {
            let mut frame = seed.frame[..14].to_vec();
            let noise = random.below(200);
            frame.extend(random.bytes(noise));
            let _ = decode_frame(&frame);
        }
    }
}

#[test]
fn damaged_batches_are_errors_or_whole() {
    let mut random = Random(SEED);
    for seed in seeds::batches() {
        records::read_and_validate(&seed);
        for _ in 0..MUTATIONS_OF_A_BATCH {
            let mut batch = seed.clone();
            damage(&mut batch, 0, &mut random);
            records::read_and_validate(&batch);
        }
    }
}

#[test]
fn every_api_has_frames_of_all_its_versions() {
    let shape = layout::SMALL;
    assert!(shape.elements > 1 && shape.unknown_tags > 0);
    let versions: usize = streamgauge_protocol::versions::APIS
        .iter()
        .map(|api| (api.max - api.min + 1) as usize)
        .sum();
    assert_eq!(seeds::frames().count(), versions);
}
