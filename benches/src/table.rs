//! Medians and ranges of repeats, as a Markdown table and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value, json};

use crate::server::Peer;

/// Repeats of each figure, by what was measured and by peer; rows in the order in which they first came.
#[derive(Default)]
pub struct Table {
    rows: Vec<String>,
    figures: BTreeMap<(String, &'static str), Vec<f64>>,
}

impl Table {
    pub fn add(&mut self, row: &str, peer: Peer, figure: f64) {
        if !self.rows.iter().any(|have| have == row) {
            self.rows.push(row.to_owned());
        }
        let key = (row.to_owned(), peer.name());
        self.figures.entry(key).or_default().push(figure);
    }

    fn of(&self, row: &str, peer: Peer) -> Option<(f64, f64, f64)> {
        let mut figures = self.figures.get(&(row.to_owned(), peer.name()))?.clone();
        figures.sort_by(f64::total_cmp);
        let median = (figures[(figures.len() - 1) / 2] + figures[figures.len() / 2]) / 2.0;
        Some((median, figures[0], figures[figures.len() - 1]))
    }

    /// One line a figure: median [least..most] of each peer, and ours divided by Kafka's.
    pub fn markdown(&self) -> String {
        let mut text = "| | Streamgauge | Apache Kafka | ratio |\n|---|---|---|---|\n".to_owned();
        let cell = |figures: Option<(f64, f64, f64)>| {
            figures.map_or("-".to_owned(), |(median, least, most)| {
                format!("{} [{}..{}]", short(median), short(least), short(most))
            })
        };
        for row in &self.rows {
            let (ours, theirs) = (self.of(row, Peer::Streamgauge), self.of(row, Peer::Kafka));
            let ratio = match (ours, theirs) {
                (Some((ours, ..)), Some((theirs, ..))) if theirs > 0.0 => {
                    format!("{:.2}", ours / theirs)
                }
                _ => "-".to_owned(),
            };
            let _ = writeln!(
                text,
                "| {row} | {} | {} | {ratio} |",
                cell(ours),
                cell(theirs)
            );
        }
        text
    }

    /// Every repeat.
    pub fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let of = |peer: Peer| self.figures.get(&(row.clone(), peer.name()));
            json!({"figure": row, "streamgauge": of(Peer::Streamgauge), "kafka": of(Peer::Kafka)})
        });
        Value::Array(rows.collect())
    }
}

fn short(figure: f64) -> String {
    match figure.abs() {
        size if size >= 100.0 => format!("{figure:.0}"),
        size if size >= 10.0 => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    }
}
