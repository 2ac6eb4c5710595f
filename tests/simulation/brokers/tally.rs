//! What happened in a run, and how its process tells of it.

use std::str::FromStr;

/// What happened in a run.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tally {
    pub starts: u64,
    /// Bits that flipped in logs, and writes that went elsewhere.
    pub damaged: u64,
    pub controllers: u64,
    pub topics: u64,
    pub generations: u64,
    pub commits: u64,
    pub late_commits_refused: u64,
    pub orders: u64,
    pub windows: u64,
    pub transactions_committed: u64,
    pub transactions_aborted: u64,
}

impl Tally {
    pub fn add(&mut self, other: &Tally) {
        let mut other = other.clone();
        for (count, more) in self.counts().into_iter().zip(other.counts()) {
            *count += *more;
        }
    }

    fn counts(&mut self) -> [&mut u64; 11] {
        [
            &mut self.starts,
            &mut self.damaged,
            &mut self.controllers,
            &mut self.topics,
            &mut self.generations,
            &mut self.commits,
            &mut self.late_commits_refused,
            &mut self.orders,
            &mut self.windows,
            &mut self.transactions_committed,
            &mut self.transactions_aborted,
        ]
    }
}

/// A run, and a digest of all that was sent in it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Ended {
    pub tally: Tally,
    pub digest: u64,
}

const MARK: &str = "the run ended: ";

impl Ended {
    /// The line that [`Ended::from_str`] finds among whatever else a process has printed.
    pub fn line(&self) -> String {
        let mut tally = self.tally.clone();
        let numbers = tally.counts().map(|count| count.to_string()).join(" ");
        format!("{MARK}{} {numbers}", self.digest)
    }
}

impl FromStr for Ended {
    type Err = &'static str;

    fn from_str(printed: &str) -> Result<Self, Self::Err> {
        let line = printed.lines().find_map(|line| line.split_once(MARK));
        let (_, line) = line.ok_or("no line tells how the run ended")?;
        let mut numbers = line.split(' ').map(|number| number.parse().ok());
        let mut number = || numbers.next().flatten().ok_or("a number is missing");
        let mut ended = Self {
            digest: number()?,
            ..Self::default()
        };
        for count in ended.tally.counts() {
            *count = number()?;
        }
        Ok(ended)
    }
}

#[test]
fn what_is_told_is_read_again() {
    let mut ended = Ended {
        digest: u64::MAX,
        ..Ended::default()
    };
    for (number, count) in (1..).zip(ended.tally.counts()) {
        *count = number;
    }
    let printed = format!("running 1 test\ntest … {}\nok\n", ended.line());
    assert_eq!(printed.parse(), Ok(ended));
}
