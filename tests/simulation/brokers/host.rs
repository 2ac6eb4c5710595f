//! The system beneath simulated processes: what they take for clocks and randomness.
//!
//! The C library's `clock_gettime` and `getrandom` are defined here, so that whatever is linked into this test gets them: the
//! standard library (clocks, the keys of its hash maps), tokio's timers, UUIDs, Raft's election timeouts. A thread that has
//! not called [`begin`] gets the system's. So production code needs no seam for time and chance, and a run that stays on one
//! thread follows from its seed.

use std::cell::Cell;
use std::ffi::{c_int, c_long, c_uint, c_void};

/// What the thread's simulated processes see.
#[derive(Clone, Copy)]
struct Host {
    wall_ms: i64,
    monotonic_ms: i64,
    random: u64,
}

thread_local! {
    static HOST: Cell<Option<Host>> = const { Cell::new(None) };
}

/// From now on this thread's time and chance are simulated. Its hash maps and generators must not have been used before: a run
/// begins on a thread of its own.
pub fn begin(seed: u64) {
    HOST.set(Some(Host {
        wall_ms: 0,
        monotonic_ms: 0,
        random: seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
    }));
}

/// Sets the clocks, in milliseconds: the wall's since 1970, and one that only goes forward.
pub fn set_clocks(wall_ms: i64, monotonic_ms: i64) {
    if let Some(host) = HOST.get() {
        HOST.set(Some(Host {
            wall_ms,
            monotonic_ms,
            ..host
        }));
    }
}

fn simulated() -> Option<Host> {
    HOST.try_with(Cell::get).ok().flatten()
}

/// Of Linux's 64-bit systems.
#[repr(C)]
pub struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

const CLOCK_REALTIME: c_int = 0;
const CLOCK_REALTIME_COARSE: c_int = 5;

#[cfg(target_arch = "x86_64")]
const SYSCALLS: (c_long, c_long) = (228, 318);
#[cfg(target_arch = "aarch64")]
const SYSCALLS: (c_long, c_long) = (113, 278);

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
}

/// In the C library's stead.
///
/// # Safety
///
/// As the C library's: `time` points to a `timespec`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: c_int, time: *mut Timespec) -> c_int {
    let Some(host) = simulated() else {
        // SAFETY: the arguments are passed on as the caller vouches for them.
        return unsafe { syscall(SYSCALLS.0, clock, time) } as c_int;
    };
    let now_ms = match clock {
        CLOCK_REALTIME | CLOCK_REALTIME_COARSE => host.wall_ms,
        _ => host.monotonic_ms,
    };
    // SAFETY: the caller vouches for the pointer.
    unsafe {
        (*time).seconds = now_ms.div_euclid(1_000);
        (*time).nanoseconds = now_ms.rem_euclid(1_000) * 1_000_000;
    }
    0
}

/// In the C library's stead.
///
/// # Safety
///
/// As the C library's: `buffer` has room for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, flags: c_uint) -> isize {
    let Some(mut host) = simulated() else {
        // SAFETY: the arguments are passed on as the caller vouches for them.
        return unsafe { syscall(SYSCALLS.1, buffer, length, flags) } as isize;
    };
    for at in 0..length {
        host.random ^= host.random << 13;
        host.random ^= host.random >> 7;
        host.random ^= host.random << 17;
        // SAFETY: the caller vouches for so much room.
        unsafe { buffer.cast::<u8>().add(at).write((host.random >> 24) as u8) };
    }
    HOST.set(Some(host));
    isize::try_from(length).unwrap_or(isize::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::{Instant, SystemTime, UNIX_EPOCH};

    use super::*;

    /// What the simulated thread sees of clocks and chance.
    fn seen(seed: u64) -> (u128, u128, uuid::Uuid, Vec<i32>) {
        let look = move || {
            begin(seed);
            set_clocks(5_000, 70);
            let began = Instant::now();
            set_clocks(5_000, 100);
            let wall = SystemTime::now().duration_since(UNIX_EPOCH);
            (
                wall.expect("after 1970").as_millis(),
                began.elapsed().as_millis(),
                uuid::Uuid::new_v4(),
                (0..50).collect::<HashSet<i32>>().into_iter().collect(),
            )
        };
        std::thread::spawn(look).join().expect("it only looks")
    }

    #[test]
    fn time_and_chance_follow_from_the_seed() {
        let (wall, passed, id, order) = seen(3);
        assert_eq!((wall, passed), (5_000, 30));
        let again = seen(3);
        assert_eq!((again.2, &again.3), (id, &order), "one seed, one run");
        let other = seen(4);
        assert!(
            other.2 != id && other.3 != order,
            "another seed, another run"
        );
    }

    #[test]
    fn other_threads_have_the_systems() {
        let year_2020_ms = 1_577_836_800_000;
        let wall = SystemTime::now().duration_since(UNIX_EPOCH);
        assert!(wall.expect("after 1970").as_millis() > year_2020_ms);
        assert_ne!(uuid::Uuid::new_v4(), uuid::Uuid::new_v4());
    }
}
