//! A shop's traffic, made up: orders, page views and request timings, with the flaws that real streams have.
//!
//! Deterministic: the same seed and times give the same events. Some are out of order, some late by whole windows, a few malformed.

use std::time::{Duration, UNIX_EPOCH};

const SHOPS: [&str; 5] = ["amber", "birch", "cedar", "dune", "elm"];
const COUNTRIES: [&str; 6] = ["DE", "FR", "NL", "PL", "SE", "US"];
const PAGES: [&str; 7] = [
    "/",
    "/shoes",
    "/coats",
    "/hats",
    "/sale",
    "/cart",
    "/checkout",
];
const SERVICES: [&str; 4] = ["catalog", "checkout", "payment", "search"];

/// In a thousand events: behind by less than the examples' bound, behind by whole windows, not to be read.
const OUT_OF_ORDER_PERMILLE: u64 = 150;
const LATE_PERMILLE: u64 = 5;
const MALFORMED_PERMILLE: u64 = 4;

/// One of the streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Stream {
    Orders,
    Views,
    Requests,
}

impl Stream {
    pub const ALL: [Stream; 3] = [Stream::Orders, Stream::Views, Stream::Requests];

    pub fn topic(self) -> &'static str {
        match self {
            Stream::Orders => "orders",
            Stream::Views => "views",
            Stream::Requests => "requests",
        }
    }
}

/// An event as it is written to its topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub stream: Stream,
    pub key: String,
    pub value: String,
}

/// What makes the events.
#[derive(Clone, Debug)]
pub(super) struct EventGenerator {
    random: Xorshift,
    order_id: u64,
}

impl EventGenerator {
    pub fn new(seed: u64) -> EventGenerator {
        EventGenerator {
            random: Xorshift::new(seed),
            order_id: seed % 1_000_000_000,
        }
    }

    /// The next event of a world whose clock shows `now_ms`.
    pub fn next(&mut self, now_ms: i64) -> Event {
        let happened_ms = now_ms - self.delay_ms();
        let mut event = match self.random.below(10) {
            0..5 => self.order(happened_ms),
            5..8 => self.view(happened_ms),
            _ => self.request(),
        };
        if self.random.below(1000) < MALFORMED_PERMILLE {
            self.damage(&mut event);
        }
        event
    }

    fn delay_ms(&mut self) -> i64 {
        let milliseconds = match self.random.below(1000) {
            dice if dice < LATE_PERMILLE => 20_000 + self.random.below(100_000),
            dice if dice < LATE_PERMILLE + OUT_OF_ORDER_PERMILLE => self.random.below(1_500),
            _ => self.random.below(50),
        };
        milliseconds as i64
    }

    fn order(&mut self, happened_ms: i64) -> Event {
        self.order_id += 1;
        let shop = self.popular(&SHOPS);
        let country = self.random.pick(&COUNTRIES);
        // Most orders are small.
        let cents = 99 + self.random.below(2_000) + self.random.below(200).pow(2) / 2;
        let status = match self.random.below(20) {
            0 => "cancelled",
            1..4 => "open",
            _ => "paid",
        };
        let customer = self.random.below(5_000);
        let value = format!(
            "{{\"order_id\":{},\"shop\":\"{shop}\",\"customer\":{{\"id\":\"c{customer}\",\"country\":\"{country}\"}},\
             \"amount\":{}.{:02},\"status\":\"{status}\",\"order_time\":\"{}\"}}",
            self.order_id,
            cents / 100,
            cents % 100,
            rfc3339(happened_ms)
        );
        Event {
            stream: Stream::Orders,
            key: format!("c{customer}"),
            value,
        }
    }

    fn view(&mut self, happened_ms: i64) -> Event {
        let page = self.popular(&PAGES);
        let visitor = self.random.below(20_000);
        let tenths = 5 + self.random.below(30).pow(2);
        let bot = self.random.below(12) == 0;
        let value = format!(
            "{{\"page\":\"{page}\",\"visitor\":\"v{visitor}\",\"seconds\":{}.{},\"bot\":{bot},\"viewed_at\":{happened_ms}}}",
            tenths / 10,
            tenths % 10
        );
        Event {
            stream: Stream::Views,
            key: format!("v{visitor}"),
            value,
        }
    }

    fn request(&mut self) -> Event {
        let service = self.popular(&SERVICES);
        // Payment fails more often than the others, and slowly.
        let failing = if service == "payment" { 60 } else { 8 };
        let (status, slower) = match self.random.below(1000) {
            dice if dice < failing => (503, 900),
            dice if dice < failing + 30 => (404, 0),
            _ => (200, 0),
        };
        let tenths = 40 + self.random.below(25).pow(2) + slower * 10;
        let value = format!(
            "{{\"service\":\"{service}\",\"status\":{status},\"duration_ms\":{}.{}}}",
            tenths / 10,
            tenths % 10
        );
        Event {
            stream: Stream::Requests,
            key: service.to_owned(),
            value,
        }
    }

    /// What goes wrong in the field: a cut line, a number as words, a missing time.
    fn damage(&mut self, event: &mut Event) {
        match self.random.below(3) {
            0 => {
                let half = event.value.len() / 2;
                event.value.truncate(half);
            }
            1 => {
                event.value = event
                    .value
                    .replace("\"amount\":", "\"amount\":\"about \",\"was\":");
            }
            _ => {
                event.value = event
                    .value
                    .replace("order_time", "ordertime")
                    .replace("viewed_at", "viewedat");
            }
        }
    }

    /// The first are picked more often than the last.
    fn popular<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        let bound = self.random.below(choices.len() as u64) + 1;
        let index = self.random.below(bound) as usize;
        choices[index]
    }
}

fn rfc3339(milliseconds: i64) -> String {
    let time = UNIX_EPOCH + Duration::from_millis(milliseconds.max(0).unsigned_abs());
    humantime::format_rfc3339_millis(time).to_string()
}

/// Marsaglia's xorshift, 64 bits, shifts 13, 7, 17.
#[derive(Clone, Debug)]
struct Xorshift {
    state: u64,
}

impl Xorshift {
    fn new(seed: u64) -> Xorshift {
        // Zero would stay zero.
        Xorshift {
            state: seed.max(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        }
    }

    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    /// A number below `bound`, which is small and positive.
    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 16) % bound
    }

    fn pick<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const NOW_MS: i64 = 1_767_225_600_000;
    const COUNT: usize = 20_000;

    fn events() -> Vec<Event> {
        let mut generator = EventGenerator::new(7);
        (0..COUNT).map(|_| generator.next(NOW_MS)).collect()
    }

    fn parsed(events: &[Event], stream: Stream) -> Vec<serde_json::Value> {
        let own = events.iter().filter(|event| event.stream == stream);
        own.filter_map(|event| serde_json::from_str(&event.value).ok())
            .collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_events_and_another_does_not() {
        let events = events();
        let mut again = EventGenerator::new(7);
        let mut other = EventGenerator::new(8);
        assert!(events.iter().all(|event| *event == again.next(NOW_MS)));
        assert!(events.iter().any(|event| *event != other.next(NOW_MS)));
    }

    #[test]
    fn orders_have_decimal_amounts_nested_countries_and_all_shops() {
        let events = events();
        let orders = parsed(&events, Stream::Orders);
        let whole = orders.iter().filter(|order| order["amount"].is_f64());
        assert!(whole.count() > COUNT * 4 / 10);
        let shops: HashSet<_> = orders.iter().filter_map(|o| o["shop"].as_str()).collect();
        assert_eq!(shops.len(), SHOPS.len());
        let countries = orders
            .iter()
            .filter_map(|o| o["customer"]["country"].as_str());
        assert_eq!(countries.collect::<HashSet<_>>().len(), COUNTRIES.len());
    }

    #[test]
    fn some_are_out_of_order_some_late_and_a_few_malformed() {
        let events = events();
        let views = parsed(&events, Stream::Views);
        let delays: Vec<i64> = views
            .iter()
            .filter_map(|view| Some(NOW_MS - view["viewed_at"].as_i64()?))
            .collect();
        let part = |low: i64, high: i64| {
            let count = delays.iter().filter(|d| (low..high).contains(*d)).count();
            count * 1000 / delays.len()
        };
        assert!((100..200).contains(&part(50, 1_500)), "{}", part(50, 1_500));
        assert!((1..20).contains(&part(20_000, 120_000)));
        let malformed = events
            .iter()
            .filter(|event| serde_json::from_str::<serde_json::Value>(&event.value).is_err());
        assert!((1..COUNT / 100).contains(&malformed.count()));
    }

    #[test]
    fn requests_fail_sometimes_and_are_timed() {
        let events = events();
        let requests = parsed(&events, Stream::Requests);
        let failed = requests
            .iter()
            .filter(|r| r["status"].as_i64() >= Some(500));
        let failed = failed.count() * 1000 / requests.len();
        assert!((5..60).contains(&failed), "{failed}");
        assert!(
            requests
                .iter()
                .any(|r| r["duration_ms"].as_f64() > Some(900.0))
        );
    }
}
