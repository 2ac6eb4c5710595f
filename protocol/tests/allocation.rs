//! No frame makes the broker allocate more than a small multiple of its own size.

#[allow(dead_code)]
#[path = "../fuzz/src/lib.rs"]
mod bodies;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use bodies::layout::Shape;
use bodies::mutation::{Random, damage};
use bodies::{records, request, seeds};
use bytes::Bytes;
use streamgauge_protocol::batch::validate::{ValidationRules, validate};
use streamgauge_protocol::batch::{BatchBuilder, TimestampType};
use streamgauge_protocol::compression::Compression;

/// Counts what the thread that asks for it allocates.
struct Counting;

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    live: isize,
    /// The most bytes that were live at once.
    peak: isize,
    /// All bytes that were ever asked for.
    sum: isize,
}

thread_local! {
    static COUNT: Cell<Count> = const { Cell::new(Count { live: 0, peak: 0, sum: 0 }) };
}

fn count(change: isize) {
    // A thread that is ending has no counter any more.
    let _ = COUNT.try_with(|cell| {
        let mut count = cell.get();
        count.live += change;
        count.peak = count.peak.max(count.live);
        count.sum += change.max(0);
        cell.set(count);
    });
}

// SAFETY: every call goes to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Old and new may both be there for a moment.
        count(size as isize);
        count(-(layout.size() as isize));
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn counted(work: impl FnOnce()) -> Count {
    COUNT.set(Count::default());
    work();
    COUNT.get()
}

/// Bytes of memory for each byte of a frame. The array elements that are largest against their least bytes set it: a topic of
/// Metadata up to 9 is two bytes (a length of 0, and the lower half of it or the count of tags) and 80 in memory (name, id, map of
/// tags); a member of LeaveGroup 4 is three and 120. To these 40 come 26 for tagged fields that the message crate does not know: each
/// map that holds one has a node of 408 bytes, and the guard lets one through for every 16 bytes.
const MULTIPLE: usize = 66;
/// The tagged fields that the guard lets through in any request, 64 × 408 bytes, and the text of an error.
const CONSTANT_BYTES: usize = 32 << 10;
const FRAMES_OF_NOISE: usize = 200;

/// Decodes a frame and holds what that took against its size.
fn check(name: &dyn std::fmt::Display, frame: Vec<u8>) -> Count {
    let bytes = frame.len();
    let frame = Bytes::from(frame);
    let count = counted(|| drop(request::decode(frame)));
    let bound = (MULTIPLE * bytes + CONSTANT_BYTES) as isize;
    // Nothing is copied or grown on the way, so all that is ever asked for keeps to the same bound as the peak.
    assert!(
        count.peak <= bound && count.sum <= bound,
        "{name}: {count:?} for a frame of {bytes} bytes"
    );
    count
}

/// Every API and version, as large in memory against its bytes as it can be made.
fn largest(unknown_tags: usize) -> impl Iterator<Item = seeds::Seed> {
    seeds::frames().flat_map(move |small| {
        let sizes = (0..12).map(move |power| {
            let shape = Shape {
                elements: 1 << power,
                text_bytes: 0,
                unknown_tags,
                tag_bytes: 0,
            };
            seeds::frame(small.api, small.version, shape)
        });
        // Arrays in arrays grow fast; the last is past the bound and taken, so that small APIs have one too.
        let mut full = false;
        sizes.take_while(move |seed| !std::mem::replace(&mut full, seed.frame.len() > 30_000))
    })
}

#[test]
fn good_frames_take_a_small_multiple_of_their_size() {
    let mut most = 0.0_f64;
    for unknown_tags in [0, 1, 2, 30] {
        for seed in largest(unknown_tags) {
            let bytes = seed.frame.len();
            let name = format!(
                "{} {} with {unknown_tags} tags",
                seed.api.name, seed.version
            );
            let count = check(&name, seed.frame);
            if unknown_tags == 0 && bytes > 1_000 {
                most = most.max(count.peak as f64 / bytes as f64);
            }
        }
    }
    // The multiple is what is needed and no more.
    assert!(
        (35.0..=40.0).contains(&most),
        "{most} bytes for a byte without tags"
    );
}

#[test]
fn truncated_inflated_and_damaged_frames_take_no_more() {
    let mut random = Random(0xA110_CA7E);
    for seed in seeds::frames() {
        let name = format!("{} {}", seed.api.name, seed.version);
        for length in 0..seed.frame.len() {
            check(
                &format_args!("{name} cut at {length}"),
                seed.frame[..length].to_vec(),
            );
        }
        // Every place where a length may stand claims as much as it can.
        for at in 4..seed.frame.len() {
            for claim in [
                &b"\x7f\xff\xff\xff"[..],
                b"\xff\xff\xff\xff\x07",
                b"\x00\x03\xff\xff",
                b"\x7f\xff",
            ] {
                let mut frame = seed.frame.clone();
                frame.truncate(at);
                frame.extend(claim);
                frame.extend(&seed.frame[at..]);
                check(&format_args!("{name} inflated at {at}"), frame);
            }
        }
        for _ in 0..FRAMES_OF_NOISE {
            let mut frame = seed.frame.clone();
            damage(&mut frame, 4, &mut random);
            check(&format_args!("{name} damaged"), frame);
            let mut frame = seed.frame[..14].to_vec();
            let noise = random.below(300);
            frame.extend(random.bytes(noise));
            check(&format_args!("{name} of noise"), frame);
        }
    }
}

/// Buffers of a codec, whatever its input: lz4 takes two blocks of the size that the frame's header names, at most 4 MiB each.
const CODEC_BYTES: usize = 9 << 20;

#[test]
fn a_damaged_batch_takes_no_more_than_it_may_unpack_to() {
    let mut random = Random(0x0BA7_C4E5);
    // The bodies validate with three rules and unpack to a mebibyte at most, which may double as it grows and is packed again.
    let bound = (4 * records::UNPACKED_BYTES_MAX + CODEC_BYTES) as isize;
    for seed in seeds::batches() {
        for _ in 0..500 {
            let mut batch = seed.clone();
            damage(&mut batch, 21, &mut random);
            let count = counted(|| records::read_and_validate(&batch));
            assert!(
                count.peak <= bound,
                "{count:?} for a batch of {} bytes",
                batch.len()
            );
        }
    }
}

/// A batch of a few kilobytes may hold a hundred thousand records that are all refused, each with a reason.
#[test]
fn naming_what_is_wrong_with_records_takes_no_memory_for_each() {
    const RECORDS: usize = 100_000;
    let mut builder = BatchBuilder::new().compression(Compression::Gzip);
    for _ in 0..RECORDS {
        builder.push(5_000, None, None, &[]);
    }
    let unpacked = builder.size_in_bytes();
    let batch = builder.build().expect("a good batch");
    let lenient = ValidationRules {
        batch_bytes_max: 1 << 20,
        compression: None,
        timestamp_type: TimestampType::CreateTime,
        timestamp_before_max_ms: i64::MAX,
        timestamp_after_max_ms: i64::MAX,
        compacted: false,
        produce_version: 9,
    };
    let keyless = ValidationRules {
        compacted: true,
        ..lenient
    };
    let untimely = ValidationRules {
        timestamp_after_max_ms: 1_000,
        ..lenient
    };
    for rules in [keyless, untimely] {
        let batch = batch.clone();
        let mut named = 0;
        let count = counted(|| {
            let error = validate(batch, &rules, 0).expect_err("every record is wrong");
            named = error.record_errors().map_or(0, |records| records.len());
        });
        assert!(named > 0, "the first ones are named");
        assert!(
            count.peak <= (4 * unpacked + (256 << 10)) as isize,
            "{count:?} for {RECORDS} records of {unpacked} bytes, {named} of them named"
        );
    }
}
