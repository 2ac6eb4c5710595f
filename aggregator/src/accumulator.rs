//! Aggregates as mergeable state: one variant and one file each.
//!
//! Every accumulator gives the same result however the records are ordered and split up: that is what lets combine fold records
//! close to where they lie and merge add up the partials. NULLs are skipped, as in SQL.
//!
//! In bytes an accumulator is a code, then what its file says: 1 count, 2 sum, 3 min, 4 max, 5 avg. Codes are never reused.

pub mod average;
pub mod count;
pub mod exact;
pub mod extreme;
pub mod sum;

use crate::codec::{CodecError, Reader};
use crate::value::Value;

use average::Average;
use count::Count;
use extreme::{Maximum, Minimum};
use sum::Sum;

/// What to compute from a group's values. `count(*)` is `Count` over an input that is never NULL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AggregateFunction {
    Count,
    Sum,
    Min,
    Max,
    Avg,
}

/// The state of one aggregate of one group in one pane.
#[derive(Debug, Clone, PartialEq)]
pub enum Accumulator {
    Count(Count),
    Sum(Sum),
    Min(Minimum),
    Max(Maximum),
    Avg(Average),
}

impl Accumulator {
    pub fn new(function: AggregateFunction) -> Accumulator {
        match function {
            AggregateFunction::Count => Accumulator::Count(Count::default()),
            AggregateFunction::Sum => Accumulator::Sum(Sum::default()),
            AggregateFunction::Min => Accumulator::Min(Minimum::default()),
            AggregateFunction::Max => Accumulator::Max(Maximum::default()),
            AggregateFunction::Avg => Accumulator::Avg(Average::default()),
        }
    }

    pub fn function(&self) -> AggregateFunction {
        match self {
            Accumulator::Count(_) => AggregateFunction::Count,
            Accumulator::Sum(_) => AggregateFunction::Sum,
            Accumulator::Min(_) => AggregateFunction::Min,
            Accumulator::Max(_) => AggregateFunction::Max,
            Accumulator::Avg(_) => AggregateFunction::Avg,
        }
    }

    /// Adds one record's value. `sum` and `avg` take numbers: anything else must have been refused as a bad record before.
    #[inline]
    pub fn add(&mut self, value: &Value<'_>) {
        match self {
            Accumulator::Count(count) => count.add(value),
            Accumulator::Sum(sum) => _ = sum.add(value),
            Accumulator::Min(minimum) => minimum.add(value),
            Accumulator::Max(maximum) => maximum.add(value),
            Accumulator::Avg(average) => average.add(value),
        }
    }

    /// Adds what another accumulator of the same function has seen. False, and nothing happens, if the functions differ.
    #[must_use]
    pub fn merge(&mut self, other: Accumulator) -> bool {
        match (self, other) {
            (Accumulator::Count(left), Accumulator::Count(right)) => left.merge(right),
            (Accumulator::Sum(left), Accumulator::Sum(right)) => left.merge(&right),
            (Accumulator::Min(left), Accumulator::Min(right)) => left.merge(right),
            (Accumulator::Max(left), Accumulator::Max(right)) => left.merge(right),
            (Accumulator::Avg(left), Accumulator::Avg(right)) => left.merge(&right),
            _ => return false,
        }
        true
    }

    /// The aggregate's value: NULL if nothing was counted in, save for `count`, which is 0.
    pub fn result(&self) -> Value<'_> {
        match self {
            Accumulator::Count(count) => count.result(),
            Accumulator::Sum(sum) => sum.result(),
            Accumulator::Min(minimum) => minimum.result(),
            Accumulator::Max(maximum) => maximum.result(),
            Accumulator::Avg(average) => average.result(),
        }
    }

    /// Bytes on the heap, about.
    pub fn heap_bytes(&self) -> usize {
        match self {
            Accumulator::Count(_) => 0,
            Accumulator::Sum(sum) => sum.heap_bytes(),
            Accumulator::Min(minimum) => minimum.heap_bytes(),
            Accumulator::Max(maximum) => maximum.heap_bytes(),
            Accumulator::Avg(average) => average.heap_bytes(),
        }
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(code(self.function()));
        match self {
            Accumulator::Count(count) => count.encode(out),
            Accumulator::Sum(sum) => sum.encode(out),
            Accumulator::Min(minimum) => minimum.encode(out),
            Accumulator::Max(maximum) => maximum.encode(out),
            Accumulator::Avg(average) => average.encode(out),
        }
    }

    pub fn decode(reader: &mut Reader<'_>) -> Result<Accumulator, CodecError> {
        Ok(match reader.byte()? {
            1 => Accumulator::Count(Count::decode(reader)?),
            2 => Accumulator::Sum(Sum::decode(reader)?),
            3 => Accumulator::Min(Minimum::decode(reader)?),
            4 => Accumulator::Max(Maximum::decode(reader)?),
            5 => Accumulator::Avg(Average::decode(reader)?),
            other => return Err(reader.unknown(u64::from(other))),
        })
    }
}

fn code(function: AggregateFunction) -> u8 {
    match function {
        AggregateFunction::Count => 1,
        AggregateFunction::Sum => 2,
        AggregateFunction::Min => 3,
        AggregateFunction::Max => 4,
        AggregateFunction::Avg => 5,
    }
}

/// The accumulators of a row, one for each of the job's aggregates, in order.
pub fn encode_all(accumulators: &[Accumulator], out: &mut Vec<u8>) {
    for accumulator in accumulators {
        accumulator.encode(out);
    }
}

/// Reads a row's accumulators; an error unless there is exactly one for each of the job's aggregates, in order.
pub fn decode_all(
    functions: &[AggregateFunction],
    bytes: &[u8],
    into: &mut Vec<Accumulator>,
) -> Result<(), CodecError> {
    into.clear();
    let mut reader = Reader::new("accumulators", bytes);
    for function in functions {
        let accumulator = Accumulator::decode(&mut reader)?;
        if accumulator.function() != *function {
            return Err(reader.invalid(format!(
                "{:?} where {function:?} was due",
                accumulator.function()
            )));
        }
        into.push(accumulator);
    }
    reader.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decimal::Decimal;
    use proptest::prelude::*;

    const ALL: [AggregateFunction; 5] = [
        AggregateFunction::Count,
        AggregateFunction::Sum,
        AggregateFunction::Min,
        AggregateFunction::Max,
        AggregateFunction::Avg,
    ];

    fn results(values: &[Value<'_>]) -> Vec<String> {
        folded(values)
            .iter()
            .map(|accumulator| accumulator.result().to_json())
            .collect()
    }

    fn folded(values: &[Value<'_>]) -> Vec<Accumulator> {
        let mut accumulators: Vec<_> = ALL.map(Accumulator::new).into();
        for accumulator in &mut accumulators {
            values.iter().for_each(|value| accumulator.add(value));
        }
        accumulators
    }

    fn decimal(text: &str) -> Value<'static> {
        Value::from_decimal(Decimal::parse(text).unwrap())
    }

    #[test]
    fn nothing_counted_in_is_null_and_a_count_of_zero() {
        assert_eq!(results(&[]), ["0", "null", "null", "null", "null"]);
        assert_eq!(
            results(&[Value::Null]),
            ["0", "null", "null", "null", "null"]
        );
    }

    #[test]
    fn nulls_are_skipped() {
        assert_eq!(
            results(&[Value::Int(4), Value::Null, Value::Int(-1)]),
            ["2", "3", "-1", "4", "1.5"]
        );
    }

    #[test]
    fn decimals_do_not_drift() {
        let values: Vec<_> = (0..10).map(|_| decimal("0.1")).collect();
        assert_eq!(results(&values), ["10", "1", "0.1", "0.1", "0.1"]);
        assert_eq!(
            results(&[decimal("10.10"), decimal("10.20")]),
            ["2", "20.3", "10.1", "10.2", "10.15"]
        );
    }

    #[test]
    fn infinities_and_nan_follow_ieee_whatever_their_order() {
        let sum = |values: &[f64]| {
            results(
                &values
                    .iter()
                    .map(|value| Value::Double(*value))
                    .collect::<Vec<_>>(),
            )[1]
            .clone()
        };
        assert_eq!(sum(&[1.5, f64::INFINITY]), "\"Infinity\"");
        assert_eq!(sum(&[f64::INFINITY, f64::NEG_INFINITY, 1.0]), "\"NaN\"");
        assert_eq!(sum(&[f64::NAN, 1.0]), "\"NaN\"");
    }

    #[test]
    fn accumulators_of_other_functions_do_not_merge() {
        assert!(
            !Accumulator::new(AggregateFunction::Sum)
                .merge(Accumulator::new(AggregateFunction::Avg))
        );
        let mut bytes = Vec::new();
        encode_all(&[Accumulator::new(AggregateFunction::Min)], &mut bytes);
        assert!(decode_all(&[AggregateFunction::Max], &bytes, &mut Vec::new()).is_err());
        assert!(decode_all(&[AggregateFunction::Min; 2], &bytes, &mut Vec::new()).is_err());
        assert!(decode_all(&[], &bytes, &mut Vec::new()).is_err());
    }

    fn number() -> impl Strategy<Value = Value<'static>> {
        prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::Int),
            (any::<i64>(), 0u32..12).prop_map(|(mantissa, scale)| Value::Decimal(
                Decimal::new(mantissa.into(), scale).unwrap()
            )),
            any::<f64>().prop_map(Value::Double),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_partition_and_order_of_the_values_gives_the_same_results(values in prop::collection::vec(number(), 0..12), split in 0usize..12) {
            let split = split.min(values.len());
            let whole = folded(&values);
            let mut merged = folded(&values[split..]);
            let mut bytes = Vec::new();
            encode_all(&folded(&values[..split]), &mut bytes);
            let mut decoded = Vec::new();
            decode_all(&ALL, &bytes, &mut decoded).unwrap();
            for (left, right) in merged.iter_mut().zip(decoded) {
                prop_assert!(left.merge(right));
            }
            for (left, right) in whole.iter().zip(&merged) {
                prop_assert_eq!(left.result().to_json(), right.result().to_json());
            }
        }
    }
}
