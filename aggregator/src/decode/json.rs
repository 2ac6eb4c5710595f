//! The JSON scanner behind [`Projection::decode`](super::Projection::decode): validates everything, keeps what is asked for.

use std::borrow::Cow;

use super::{DecodeError, Field, JSON_DEPTH_MAX, Node};
use crate::decimal::Decimal;
use crate::value::Value;

pub(super) struct Scanner<'a, 'p> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    nodes: &'p [Node],
    fields: &'p mut [Field<'a>],
}

/// A string token: the text between the quotes.
struct StringToken<'a> {
    raw: &'a str,
    escaped: bool,
}

impl<'a, 'p> Scanner<'a, 'p> {
    pub(super) fn new(
        text: &'a str,
        nodes: &'p [Node],
        fields: &'p mut [Field<'a>],
    ) -> Scanner<'a, 'p> {
        Scanner {
            text,
            bytes: text.as_bytes(),
            at: 0,
            nodes,
            fields,
        }
    }

    pub(super) fn record(mut self) -> Result<(), DecodeError> {
        self.skip_space();
        let is_object = self.peek() == Some(b'{');
        if is_object {
            self.value(self.nodes.first(), 0)?;
        } else {
            self.value(None, 0)?;
        }
        self.skip_space();
        if self.at != self.bytes.len() {
            return Err(self.malformed("text after the value"));
        }
        if is_object {
            Ok(())
        } else {
            Err(DecodeError::NotAnObject)
        }
    }

    /// Scans one value; `node` says what of it is kept.
    fn value(&mut self, node: Option<&'p Node>, depth: usize) -> Result<(), DecodeError> {
        match self.peek() {
            Some(b'"') => {
                let token = self.string()?;
                if let Some(node) = node {
                    let text = if token.escaped {
                        Cow::Owned(self.unescape(token.raw)?)
                    } else {
                        Cow::Borrowed(token.raw)
                    };
                    self.store_scalar(node, Field::Value(Value::String(text)), "a string");
                }
                Ok(())
            }
            Some(b'{') => self.object(node, depth),
            Some(b'[') => self.array(node, depth),
            Some(b'-' | b'0'..=b'9') => self.number(node),
            Some(b't') => self.literal("true", node, Value::Bool(true)),
            Some(b'f') => self.literal("false", node, Value::Bool(false)),
            Some(b'n') => self.literal("null", node, Value::Null),
            Some(_) => Err(self.malformed("expected a value")),
            None => Err(self.malformed("the text ends early")),
        }
    }

    fn object(&mut self, node: Option<&'p Node>, depth: usize) -> Result<(), DecodeError> {
        if depth >= JSON_DEPTH_MAX {
            return Err(DecodeError::TooDeep);
        }
        if let Some(node) = node {
            self.open_container(node, Field::Object, node.elements.as_slice(), "an object");
        }
        self.at += 1;
        self.skip_space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            if self.peek() != Some(b'"') {
                return Err(self.malformed("expected a member name"));
            }
            let name = self.string()?;
            let child = match node {
                Some(node) if !node.fields.is_empty() => self.member(node, &name)?,
                _ if name.escaped => self.unescape(name.raw).map(|_| None)?,
                _ => None,
            };
            self.skip_space();
            if self.peek() != Some(b':') {
                return Err(self.malformed("expected ':'"));
            }
            self.at += 1;
            self.skip_space();
            self.value(child, depth + 1)?;
            self.skip_space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return Err(self.malformed("expected ',' or '}'")),
            }
            self.skip_space();
        }
    }

    fn member(
        &self,
        node: &'p Node,
        name: &StringToken<'a>,
    ) -> Result<Option<&'p Node>, DecodeError> {
        let unescaped;
        let name = if name.escaped {
            unescaped = self.unescape(name.raw)?;
            unescaped.as_str()
        } else {
            name.raw
        };
        let child = node.fields.iter().find(|(field, _)| **field == *name);
        Ok(child.and_then(|(_, child)| self.nodes.get(*child)))
    }

    fn array(&mut self, node: Option<&'p Node>, depth: usize) -> Result<(), DecodeError> {
        if depth >= JSON_DEPTH_MAX {
            return Err(DecodeError::TooDeep);
        }
        if let Some(node) = node {
            self.open_container(node, Field::Array, node.fields.as_slice(), "an array");
        }
        self.at += 1;
        self.skip_space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(());
        }
        let mut index = 0u32;
        loop {
            index = index.saturating_add(1);
            let child = node.and_then(|node| {
                let (_, child) = node
                    .elements
                    .iter()
                    .find(|(element, _)| *element == index)?;
                self.nodes.get(*child)
            });
            self.value(child, depth + 1)?;
            self.skip_space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return Err(self.malformed("expected ',' or ']'")),
            }
            self.skip_space();
        }
    }

    /// Forgets what an earlier duplicate left below `node`, and marks the paths that this kind of container cannot have.
    fn open_container<T>(
        &mut self,
        node: &'p Node,
        field: Field<'a>,
        impossible: &[(T, usize)],
        kind: &'static str,
    ) {
        if let Some(slot) = node.slot {
            self.set(slot, field);
        }
        for slot in &node.below {
            self.set(*slot, Field::Value(Value::Null));
        }
        for (_, child) in impossible {
            if let Some(child) = self.nodes.get(*child) {
                for slot in child.slot.iter().chain(&child.below) {
                    self.set(*slot, Field::NoContainer(kind));
                }
            }
        }
    }

    fn store_scalar(&mut self, node: &'p Node, field: Field<'a>, kind: &'static str) {
        let is_null = matches!(field, Field::Value(Value::Null));
        if let Some(slot) = node.slot {
            self.set(slot, field);
        }
        for slot in &node.below {
            self.set(
                *slot,
                if is_null {
                    Field::Value(Value::Null)
                } else {
                    Field::NoContainer(kind)
                },
            );
        }
    }

    fn set(&mut self, slot: usize, field: Field<'a>) {
        if let Some(place) = self.fields.get_mut(slot) {
            *place = field;
        }
    }

    fn literal(
        &mut self,
        word: &'static str,
        node: Option<&'p Node>,
        value: Value<'static>,
    ) -> Result<(), DecodeError> {
        if !self
            .bytes
            .get(self.at..)
            .is_some_and(|rest| rest.starts_with(word.as_bytes()))
        {
            return Err(self.malformed("expected a value"));
        }
        self.at += word.len();
        if let Some(node) = node {
            self.store_scalar(node, Field::Value(value), "a boolean");
        }
        Ok(())
    }

    fn number(&mut self, node: Option<&'p Node>) -> Result<(), DecodeError> {
        let start = self.at;
        let negative = self.peek() == Some(b'-');
        self.at += usize::from(negative);
        let mut mantissa = 0i64;
        let whole_from = self.at;
        self.digits(&mut mantissa)?;
        let mut digits = self.at - whole_from;
        if digits > 1 && self.bytes.get(whole_from) == Some(&b'0') {
            return Err(self.malformed("a number with a leading zero"));
        }
        let mut scale = 0;
        if self.peek() == Some(b'.') {
            self.at += 1;
            let fraction_from = self.at;
            self.digits(&mut mantissa)?;
            scale = self.at - fraction_from;
            digits += scale;
        }
        let mut exponent = false;
        if let Some(b'e' | b'E') = self.peek() {
            exponent = true;
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits(&mut 0)?;
        }
        let Some(node) = node else { return Ok(()) };
        let field = if digits <= 18 && !exponent {
            // Up to 18 digits the mantissa cannot have wrapped.
            let mantissa = if negative { -mantissa } else { mantissa };
            match scale {
                0 => Field::Value(Value::Int(mantissa)),
                _ => Field::Value(
                    Decimal::new(mantissa.into(), scale as u32).map_or(Value::Null, Value::Decimal),
                ),
            }
        } else {
            let text = self.text.get(start..self.at).unwrap_or_default();
            Decimal::parse(text).map_or(Field::NumberOutOfRange(text), |decimal| {
                Field::Value(Value::from_decimal(decimal))
            })
        };
        self.store_scalar(node, field, "a number");
        Ok(())
    }

    /// One or more digits, folded into `mantissa` (which may wrap: the caller counts).
    fn digits(&mut self, mantissa: &mut i64) -> Result<(), DecodeError> {
        let from = self.at;
        while let Some(digit @ b'0'..=b'9') = self.peek() {
            *mantissa = mantissa
                .wrapping_mul(10)
                .wrapping_add(i64::from(digit - b'0'));
            self.at += 1;
        }
        if self.at == from {
            Err(self.malformed("expected a digit"))
        } else {
            Ok(())
        }
    }

    /// At an opening quote; ends behind the closing one.
    fn string(&mut self) -> Result<StringToken<'a>, DecodeError> {
        const ONES: u64 = u64::from_ne_bytes([1; 8]);
        const HIGHS: u64 = u64::from_ne_bytes([0x80; 8]);
        fn has_zero(word: u64) -> u64 {
            word.wrapping_sub(ONES) & !word & HIGHS
        }
        let start = self.at + 1;
        let mut at = start;
        let mut escaped = false;
        loop {
            // Eight bytes at a time while none of them is a quote, a backslash or a control character. The lowest
            // marked byte of each test is exact, so that the first special byte is found by counting zeros.
            while let Some(chunk) = self
                .bytes
                .get(at..)
                .and_then(|rest| rest.first_chunk::<8>())
            {
                let word = u64::from_le_bytes(*chunk);
                let control = word.wrapping_sub(ONES * 0x20) & !word & HIGHS;
                let special = has_zero(word ^ (ONES * u64::from(b'"')))
                    | has_zero(word ^ (ONES * u64::from(b'\\')))
                    | control;
                if special != 0 {
                    at += (special.trailing_zeros() / 8) as usize;
                    break;
                }
                at += 8;
            }
            match self.bytes.get(at) {
                Some(b'"') => {
                    self.at = at + 1;
                    let raw = self.text.get(start..at).unwrap_or_default();
                    if escaped {
                        // Also in strings that nobody reads: the record must be JSON as a whole.
                        self.check_escapes(raw, start)?;
                    }
                    return Ok(StringToken { raw, escaped });
                }
                Some(b'\\') => {
                    escaped = true;
                    at += 2;
                }
                Some(0..0x20) => {
                    self.at = at;
                    return Err(self.malformed("a control character in a string"));
                }
                Some(_) => at += 1,
                None => {
                    self.at = self.bytes.len();
                    return Err(self.malformed("a string without an end"));
                }
            }
        }
    }

    fn check_escapes(&self, raw: &str, start: usize) -> Result<(), DecodeError> {
        each_piece(raw, |_| ()).map_err(|at| DecodeError::Malformed {
            position: start + at,
            reason: "an invalid escape",
        })
    }

    fn unescape(&self, raw: &str) -> Result<String, DecodeError> {
        let mut text = String::with_capacity(raw.len());
        each_piece(raw, |piece| match piece {
            Piece::Text(part) => text.push_str(part),
            Piece::Char(letter) => text.push(letter),
        })
        .map_err(|_| self.malformed("an invalid escape"))?;
        Ok(text)
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn malformed(&self, reason: &'static str) -> DecodeError {
        DecodeError::Malformed {
            position: self.at,
            reason,
        }
    }
}

enum Piece<'a> {
    Text(&'a str),
    Char(char),
}

/// Splits a string token's text at its escapes. `Err` is the place of an invalid one; a lone surrogate is invalid.
fn each_piece<'a>(raw: &'a str, mut take: impl FnMut(Piece<'a>)) -> Result<(), usize> {
    let mut rest = raw;
    while let Some((clean, escape)) = rest.split_once('\\') {
        take(Piece::Text(clean));
        let place = raw.len() - escape.len() - 1;
        let mut letters = escape.chars();
        let letter = match letters.next().ok_or(place)? {
            letter @ ('"' | '\\' | '/') => letter,
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => {
                let unit = hex_unit(&mut letters).ok_or(place)?;
                let code = match unit {
                    0xd800..0xdc00 => {
                        let low = (letters.next() == Some('\\') && letters.next() == Some('u'))
                            .then(|| hex_unit(&mut letters))
                            .flatten()
                            .filter(|low| (0xdc00..0xe000).contains(low))
                            .ok_or(place)?;
                        0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00)
                    }
                    unit => unit,
                };
                char::from_u32(code).ok_or(place)?
            }
            _ => return Err(place),
        };
        take(Piece::Char(letter));
        rest = letters.as_str();
    }
    take(Piece::Text(rest));
    Ok(())
}

fn hex_unit(letters: &mut std::str::Chars<'_>) -> Option<u32> {
    (0..4).try_fold(0, |unit, _| Some(unit << 4 | letters.next()?.to_digit(16)?))
}
